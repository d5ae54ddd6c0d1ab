"""Prepared graphs on disk: written once, memory-mapped, checked where they are used."""

from cgnn.data.store.mapped import GraphStore
from cgnn.data.store.writer import StoreWriter, is_unfinished

__all__ = ["GraphStore", "StoreWriter", "is_unfinished"]
