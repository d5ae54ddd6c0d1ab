"""When two crystals count as the same: by what they are made of, by distances, or by matching all atoms."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cgnn.config import GraphConfig
from cgnn.data.dataset import collate, summarise
from cgnn.data.summary import duplicate_groups
from cgnn.errors import CrystalError
from cgnn.graph.build import GraphBuilder
from cgnn.graph.crystal import Crystal

Same = Callable[[Crystal, Crystal], bool]


def composition(first: Crystal, second: Crystal) -> bool:
    """Say yes: only crystals of one reduced formula are compared."""
    return True


def structure(first: Crystal, second: Crystal) -> bool:
    """Compare volume per atom and distances of nearest neighbours, to 1e-3 (`cgnn.data.summary.duplicate_groups`)."""
    builder = GraphBuilder(GraphConfig())
    try:
        graphs = [builder.arrays(crystal) for crystal in (first, second)]
    except CrystalError:
        return False
    return len(duplicate_groups(list(summarise(collate(graphs), ["0", "1"])))) == 1


def matcher(first: Crystal, second: Crystal) -> bool:
    """Match all atoms with pymatgen's ``StructureMatcher`` and its default tolerances: looser, and far slower."""
    return bool(_matcher().fit(first.to_structure(), second.to_structure()))


@lru_cache(maxsize=1)
def _matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher()


SAMENESS: dict[str, Same] = {"composition": composition, "structure": structure, "matcher": matcher}
"""Ways to tell whether two crystals of one reduced formula are the same."""
