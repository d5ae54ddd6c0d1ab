"""Closed formulas: from elastic moduli to hardness, toughness, sound and heat, with their errors. Numpy only."""

from cgnn.physics.chemistry import is_metal
from cgnn.physics.hardness import is_superhard
from cgnn.physics.propagation import derivable, derive, lognormal_samples
from cgnn.physics.relations import RELATIONS, Relation, flags

__all__ = ["RELATIONS", "Relation", "derivable", "derive", "flags", "is_metal", "is_superhard", "lognormal_samples"]
