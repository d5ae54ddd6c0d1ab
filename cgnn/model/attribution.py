r"""Which atoms and which bonds a prediction rests on, measured from outside the network.

Two questions are asked, each along a straight path from a reference to the crystal as it is: what does it matter which
element an atom is (from the average element to its own), and what does it matter that two atoms see each other (from
messages of weight zero to their full weight). What the network learns of a crystal's volume and composition by way of
descriptors stays the same along both paths, so it belongs to no atom and to no bond.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_geometric.data import Batch

from cgnn.errors import ConfigError, choose
from cgnn.graph.fields import CrystalGraph
from cgnn.model.network import CrystalGNN
from cgnn.targets import Target

Array = NDArray[np.float64]
Rule = Callable[[int], tuple[Array, Array]]
EDGES_AT_ONCE = 200_000
"""Edges of the copies of a crystal that go through the network at once."""


def _on_the_way(points: int) -> tuple[Array, Array]:
    places, weights = np.polynomial.legendre.leggauss(points)
    return (places + 1) / 2, weights / 2


WAYS: dict[str, Rule] = {
    "integrated": _on_the_way,
    "gradient": lambda points: (np.ones(1), np.ones(1)),
}
r"""A number of points -> places on the path, from 0 to 1, and their weights, for

.. math:: a_i = (x_i - x_i') \cdot \sum_k w_k \, \partial f(x' + t_k (x - x')) / \partial x_i

``integrated`` is the integral over the path by Gauss's rule: the parts sum up to f(x) - f(x'). ``gradient`` (times
input) looks at its end only, one pass instead of many, and sums up to nothing in particular.

Source: Sundararajan, Taly and Yan, Axiomatic attribution for deep networks, ICML 2017, arXiv:1703.01365, eq. 1;
    Shrikumar, Greenside and Kundaje, ICML 2017, arXiv:1704.02685, for gradient times input.
"""


@dataclass(frozen=True)
class Attribution:
    """Parts of one value that belong to atoms or to bonds.

    Args:
        parts: One for each atom (N,), or for each edge (E,).
        value: The value of the crystal.
        reference: The value at the other end of the path.
    """

    parts: Array
    value: float
    reference: float

    @property
    def gap(self) -> float:
        """What the parts miss of ``value - reference``; for ``integrated`` the error of the integral.

        It is large for bonds where a layer normalisation blows up messages that have almost gone (``norm: layer``).
        """
        return self.value - self.reference - float(self.parts.sum())


def attribute(
    members: Sequence[CrystalGNN],
    graph: CrystalGraph,
    elements: Sequence[int],
    target: str,
    way: str = "integrated",
    points: int = 48,
) -> tuple[Attribution, Attribution]:
    """Return the parts of a value that belong to the atoms, and those that belong to the bonds.

    The value is on the learned scale (regression; of an atom-level target the mean of the atoms), or the log odds
    (binary), or the raw output of the likeliest class. Equivalent atoms and bonds have equal parts.

    Args:
        members: The networks, whose mean counts.
        graph: The crystal.
        elements: Atomic numbers whose mean embedding is the reference of an atom, such as those of the training.
        target: Name of the target.
        way: Entry of `WAYS`.
        points: Places on the path.

    Raises:
        ConfigError: The heads are trees or kernels over descriptors of whole crystals.
    """
    if any(member.config.is_fitted_at_once for member in members):
        raise ConfigError("heads are trees or kernels over descriptors (model.head), in which atoms have no shares")
    rule = choose(WAYS, way, "way of attribution")(points)
    twins = [copy.deepcopy(member).cpu().double().eval() for member in members]  # in double precision nothing is fused
    asked = next(each for each in twins[0].targets if each.name == target)
    likeliest = int(_mean_raw(twins, graph, target).argmax())
    found = [_Question(twin.requires_grad_(False), graph, asked, likeliest) for twin in twins]
    atoms = [each.parts(each.embeddings, *each.elements(elements), rule) for each in found]
    bonds = [each.parts(each.weights, *each.no_edges_and_all(), rule) for each in found]
    return _mean(atoms), _mean(bonds)


@dataclass(frozen=True)
class _Question:
    """One value of one crystal by one network, which can be asked with other atoms or other edges.

    Args:
        network: The network.
        graph: The crystal.
        target: What is predicted.
        likeliest: The likeliest class.
    """

    network: CrystalGNN
    graph: CrystalGraph
    target: Target
    likeliest: int

    def value(self, batch: Any) -> Tensor:
        """Return the value of each copy of the crystal (B,)."""
        raw = self.network(batch)[self.target.name]
        learned = self.network.head(self.target.name).learned(raw)
        values = raw[:, self.likeliest] if learned is None else learned[0]
        if self.target.level == "crystal":
            return values
        return values.reshape(batch.num_graphs, -1).mean(1)

    def parts(
        self,
        put: Callable[[Tensor], AbstractContextManager[None]],
        start: Tensor,
        end: Tensor,
        rule: tuple[Array, Array],
    ) -> Attribution:
        """Return the parts along the straight path from one input (n, C) to another.

        Args:
            put: Lets the network calculate with an input, of all copies one after another.
            start: Where the path begins.
            end: Where it ends: at the crystal as it is.
            rule: Places on the path and their weights.
        """
        total = torch.zeros_like(start)
        at_once = max(1, EDGES_AT_ONCE // max(1, self.graph.num_edges))
        for first in range(0, len(rule[0]), at_once):
            places, weights = (torch.from_numpy(each[first : first + at_once])[:, None, None] for each in rule)
            x = torch.lerp(start, end, places).flatten(0, 1).requires_grad_()
            with put(x):
                values = self.value(self._copies(len(places)))
            # an input that the network does not use has a gradient too
            (gradient,) = torch.autograd.grad(values.sum() + 0 * x.sum(), x)
            total += (weights * gradient.reshape(len(places), *start.shape)).sum(0)
        with torch.no_grad(), put(torch.cat([start, end])):
            reference, value = self.value(self._copies(2)).tolist()
        return Attribution((total * (end - start)).sum(1).numpy(), value, reference)

    def _copies(self, count: int) -> Batch:
        return Batch.from_data_list([self.graph] * count)

    def elements(self, known: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the atoms' embeddings (N, F): those of the average element, and their own."""
        with torch.no_grad():
            own = self.network.embed(self.graph.z)
            average = self.network.embed(torch.tensor(list(known))).mean(0)
        return average.expand_as(own), own

    def no_edges_and_all(self) -> tuple[Tensor, Tensor]:
        """Return factors on the edges' weights (E, 1): all zero, and all one."""
        ones = torch.ones(self.graph.num_edges, 1, dtype=torch.float64)
        return torch.zeros_like(ones), ones

    @contextmanager
    def embeddings(self, h: Tensor) -> Iterator[None]:
        """Let the network begin with other embeddings of the atoms."""
        handle = self.network.embed.register_forward_hook(lambda module, inputs, output: h)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def weights(self, factor: Tensor) -> Iterator[None]:
        """Let all convolutions see the edges' weights with a factor."""

        def scaled(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            h, edges, *others = inputs
            return (h, replace(edges, weight=edges.weight * factor), *others)

        handles = [conv.register_forward_pre_hook(scaled) for conv in self.network.convs]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def _mean_raw(members: Sequence[CrystalGNN], graph: CrystalGraph, target: str) -> Tensor:
    """Return the mean raw output of the members (C,), of an atom-level target over the atoms too."""
    batch = Batch.from_data_list([graph])
    return torch.cat([member(batch)[target] for member in members]).mean(0)


def _mean(found: Sequence[Attribution]) -> Attribution:
    parts = np.mean([each.parts for each in found], axis=0)
    value, reference = (float(np.mean([getattr(each, name) for each in found])) for name in ("value", "reference"))
    return Attribution(parts, value, reference)
