"""Crystals from files: records, prepared graphs, labels, splits, batches, tables.

Import from the modules: reading records needs no torch, and should not wait for it.
"""
