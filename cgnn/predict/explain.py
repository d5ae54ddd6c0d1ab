"""Which atoms and bonds the predictions of a stored model rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.errors import choose
from cgnn.graph.fields import CrystalGraph
from cgnn.model.attribution import Attribution, attribute
from cgnn.predict.predictor import Predictor
from cgnn.targets import Target
from cgnn.train.metrics import learned_unit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bonds:
    """Pairs of atoms that exchange messages, each once, with the parts of both directions.

    Args:
        atoms: The two atoms (P, 2).
        starts: Place of the first, Å (P, 3).
        vectors: From there to the second, or an image of it, Å (P, 3).
        parts: Parts of the value (P,).
    """

    atoms: NDArray[np.int64]
    starts: Array
    vectors: Array
    parts: Array


@dataclass(frozen=True)
class Explanation:
    """What a prediction of one target for one crystal rests on.

    Args:
        target: The target.
        unit: Unit of value and parts.
        graph: The crystal.
        atoms: Parts of the atoms: what it matters which element they are.
        edges: Parts of the edges: what it matters that their messages arrive.
    """

    target: Target
    unit: str
    graph: CrystalGraph
    atoms: Attribution
    edges: Attribution

    def bonds(self) -> Bonds:
        """Return the edges with those that lead back, as bonds; the largest parts first."""
        source, target = self.graph.edge_index.numpy()
        shift = self.graph.edge_shift.numpy().astype(np.int64)
        # the same pair seen from the other atom has its atoms exchanged and the opposite shift
        names = np.column_stack([target, source, shift])
        back = np.column_stack([source, target, -shift])
        is_back = _is_smaller(back, names)
        names[is_back] = back[is_back]
        pairs, which = np.unique(names, axis=0, return_inverse=True)
        parts = np.zeros(len(pairs))
        np.add.at(parts, which.ravel(), self.edges.parts)
        order = np.argsort(-np.abs(parts), kind="stable")
        pairs, position, lattice = pairs[order], self.graph.pos.numpy(), self.graph.lattice[0].numpy()
        starts = position[pairs[:, 0]]
        ends = position[pairs[:, 1]] + pairs[:, 2:] @ lattice
        return Bonds(pairs[:, :2], starts, ends - starts, parts[order])


def _is_smaller(rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which rows (n, C) come before others (n, C) in the order of a dictionary."""
    difference = rows - others
    first = np.argmax(difference != 0, axis=1)
    return np.asarray(difference[np.arange(len(rows)), first] < 0)


def explain(
    predictor: Predictor, crystal: Any, target: str | None = None, way: str = "integrated"
) -> list[Explanation]:
    """Return what the predictions of a crystal rest on, target by target.

    Of an ensemble with members whose heads are fitted at once, trees or kernels over descriptors of whole crystals, it
    is what the others predict that is explained.

    Args:
        predictor: The model.
        crystal: A `Crystal`, a pymatgen ``Structure`` or ASE ``Atoms``.
        target: Name of a target; by default all.
        way: Entry of `cgnn.model.attribution.WAYS`.

    Raises:
        CrystalError: The crystal can't be used.
        ConfigError: No such target or way, or all heads are fitted at once.
    """
    targets = {each.name: each for each in predictor.info.config.targets}
    wanted = list(targets.values()) if target is None else [choose(targets, target, "target")]
    graph = predictor.builder(crystal)
    known = predictor.info.elements
    networks = [member for member in predictor.members if not member.config.is_fitted_at_once]
    return [
        Explanation(each, _unit(each), graph, *attribute(networks or predictor.members, graph, known, each.name, way))
        for each in wanted
    ]


def _unit(target: Target) -> str:
    if target.task == "regression":
        return learned_unit(target)
    return "log odds" if target.task == "binary" else "raw output"
