"""The network and its parts."""

from cgnn.model.network import CrystalGNN

__all__ = ["CrystalGNN"]
