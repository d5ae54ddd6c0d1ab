"""From CIF texts and structures to graphs."""

from __future__ import annotations

import baselines
import inputs
from baselines import TWELVE
from clock import Ratio, alternate, compare, seconds

from cgnn.config import GraphConfig
from cgnn.data.reading.cif import crystal_from_cif
from cgnn.graph.build import GraphBuilder


def cif_to_graph(quick: bool) -> Ratio:
    """Measure CIF text to the graph of the twelve nearest."""
    return _from_texts(quick, None, "CIF text to graph, 12 nearest", 60)


def cif_with_symmetry_to_graph(quick: bool) -> Ratio:
    """Measure the same with CIFs that list symmetry operations and the asymmetric unit."""
    return _from_texts(quick, 0.01, "the same, CIF with symmetry operations", None)


def cif_to_default_graph(quick: bool) -> Ratio:
    """Measure CIF text to the graph that `cgnn` makes if nothing else is asked for."""
    return _from_texts(quick, None, "CIF text to our default graph (twice the edges, smooth)", None, GraphConfig())


def structure_to_graph(quick: bool) -> Ratio:
    """Measure a pymatgen structure to the graph of the twelve nearest."""
    crystals = inputs.structures(_count(quick))
    builder = GraphBuilder(TWELVE)
    times = alternate(
        lambda: seconds(lambda: [baselines.crystal_graph(crystal) for crystal in crystals]),
        lambda: seconds(lambda: [builder.arrays(crystal) for crystal in crystals]),
        _rounds(quick),
    )
    work = "pymatgen `Structure` to graph, 12 nearest"
    per = 1000 / len(crystals)
    against = "pymatgen `get_all_neighbors`, sort, cut to 12"
    return compare(work, against, "ms per crystal", times, (per, per), 40, _note(crystals))


def _from_texts(
    quick: bool, symprec: float | None, work: str, floor: float | None, settings: GraphConfig = TWELVE
) -> Ratio:
    crystals = inputs.structures(_count(quick))
    texts = inputs.cif_texts(crystals, symprec)
    builder = GraphBuilder(settings)
    times = alternate(
        lambda: seconds(lambda: [baselines.crystal_graph(baselines.parse_cif(text)) for text in texts]),
        lambda: seconds(lambda: [builder.arrays(crystal_from_cif(text)) for text in texts]),
        _rounds(quick),
    )
    per = 1000 / len(texts)
    against = "pymatgen `CifParser`, `get_all_neighbors`, sort, cut to 12"
    return compare(work, against, "ms per crystal", times, (per, per), floor, _note(crystals))


def _count(quick: bool) -> int:
    return 4 if quick else 300


def _rounds(quick: bool) -> int:
    return 2 if quick else 5


def _note(crystals: list[inputs.Structure]) -> str:
    mean = sum(len(crystal) for crystal in crystals) / len(crystals)
    return f"{len(crystals)} {inputs.source()} of {mean:.1f} atoms on average"
