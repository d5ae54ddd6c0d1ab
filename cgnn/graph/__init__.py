"""Crystals as graphs."""

from cgnn.graph.build import GraphBuilder, fingerprint
from cgnn.graph.fields import CrystalGraph
from cgnn.graph.neighbors import NEIGHBORS

__all__ = ["NEIGHBORS", "CrystalGraph", "GraphBuilder", "fingerprint"]
