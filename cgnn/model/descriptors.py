"""What is known of a crystal without a graph: features of whole crystals, beside the pooled ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter

from cgnn.errors import choose
from cgnn.graph.fields import distances
from cgnn.model.embed import MAX_Z, atomic_volumes, covalent_radii, electronegativities, envelope, properties


class Descriptor(nn.Module):
    """Features of whole crystals."""

    outputs: int

    def forward(self, graph: Any) -> Tensor:
        """Return the features (B, outputs) of a batch."""
        raise NotImplementedError


class ElementStatistics(Descriptor):
    """Mean, mean absolute deviation, minimum and maximum of the element properties over the atoms (B, 4P)."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.as_tensor(properties(), dtype=torch.float32))
        self.outputs = 4 * self.table.shape[1]

    def forward(self, graph: Any) -> Tensor:
        """Return the statistics (B, 4P)."""
        return _statistics(self.table.index_select(0, graph.z), graph)


class Volume(Descriptor):
    """Volume per atom, and its ratio to that of the pure elements, as logarithms (B, 2).

    Shifted and scaled by fixed numbers to about zero and one.
    """

    outputs = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("elemental", torch.as_tensor(atomic_volumes(), dtype=torch.float32))

    def forward(self, graph: Any) -> Tensor:
        """Return the two features (B, 2)."""
        atoms = torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)
        volume = graph.lattice.det().abs() / atoms
        elemental = _mean(self.get_buffer("elemental").index_select(0, graph.z)[:, None], graph)[:, 0]
        features = [(volume.log10() - 1.2) / 0.2, (volume / elemental).log10() / 0.2]
        return torch.stack(features, dim=1)


class Environments(Descriptor):
    r"""How atoms are surrounded, number of elements, packing and density of bonds (B, 19).

    Of each atom the distance :math:`d_i` to its nearest neighbour, the same over the sum of the covalent radii, the
    effective coordination :math:`n_i` and the difference of electronegativity to the neighbours:

    .. math:: n_i = \sum_j w_{ij} e^{1 - (d_{ij} / d_i)^6}, \quad \frac{1}{n_i} \sum_j w_{ij} e^{1 - (d_{ij} / d_i)^6}
        \, |\chi_i - \chi_j|

    with the envelope w of messages, so that a neighbour that leaves the graph does not jump out of the sums. Mean, mean
    absolute deviation, minimum and maximum over the atoms. An atom without neighbours has its reach as :math:`d_i`.
    Shifted and scaled by fixed numbers to about zero and one.

    Source: effective coordination after Hoppe, Z. Kristallogr. 150, 23 (1979), doi:10.1524/zkri.1979.150.14.23.
    """

    outputs = 4 * 4 + 3
    FARTHEST = 10.0
    """Nearest distance of an atom without neighbours at the most, Å."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("radius", torch.as_tensor(covalent_radii(), dtype=torch.float32))
        self.register_buffer("electronegativity", torch.as_tensor(electronegativities(), dtype=torch.float32))
        self.register_buffer("shift", torch.tensor([2.4, 1.0, 7.0, 0.8]))
        self.register_buffer("scale", torch.tensor([0.6, 0.15, 4.0, 0.6]))

    def forward(self, graph: Any) -> Tensor:
        """Return the features (B, 19)."""
        nearest, ratio, bonds, polarity = self._of_atoms(graph)
        numbers = torch.stack([nearest, ratio, bonds, polarity], dim=1)
        atoms = (numbers - self.get_buffer("shift")) / self.get_buffer("scale")
        volume = graph.lattice.det().abs() / torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)
        spheres = torch.pi / 6 * _mean(nearest[:, None] ** 3, graph)[:, 0]
        density = _mean(bonds[:, None], graph)[:, 0].clamp(min=1e-3) / volume
        whole = [(_kinds(graph) - 3.0), ((spheres / volume).log10() + 0.35) / 0.15, (density.log10() + 0.4) / 0.25]
        return torch.cat([_statistics(atoms, graph), torch.stack(whole, dim=1)], dim=1).float()

    def _of_atoms(self, graph: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return nearest distance, the same over covalent radii, coordination and polarity (N,) each."""
        source, target = graph.edge_index
        distance, reach = distances(graph), graph.reach.clamp(max=self.FARTHEST)
        radius = self.get_buffer("radius").to(distance).index_select(0, graph.z)
        chi = self.get_buffer("electronegativity").to(distance).index_select(0, graph.z)
        pairs = radius.index_select(0, source) + radius.index_select(0, target)
        nearest = reach.scatter_reduce(0, target, distance, "amin")
        ratio = (reach / (2 * radius)).scatter_reduce(0, target, distance / pairs, "amin")
        beyond = distance / nearest.index_select(0, target)
        weight = (1 - beyond**6).exp() * envelope(distance, graph.reach.index_select(0, target))
        bonds = scatter(weight, target, dim_size=len(graph.z), reduce="sum")
        steps = weight * (chi.index_select(0, source) - chi.index_select(0, target)).abs()
        polarity = scatter(steps, target, dim_size=len(graph.z), reduce="sum") / bonds.clamp(min=1e-6)
        return nearest, ratio, bonds, polarity


DESCRIPTORS: dict[str, Callable[[], Descriptor]] = {
    "element_statistics": ElementStatistics,
    "volume": Volume,
    "environments": Environments,
}
"""Features of whole crystals; each is the same in every cell, orientation and order of the atoms."""


class CrystalDescriptors(nn.Module):
    """A small network over named descriptors of crystals, which is added to the pooled features.

    Args:
        names: Entries of `DESCRIPTORS`.
        width: Features per crystal F.
        dropout: Share of the hidden features that is dropped in training.
    """

    def __init__(self, names: Sequence[str], width: int, dropout: float = 0.0) -> None:
        super().__init__()
        parts = [choose(DESCRIPTORS, name, "descriptor")() for name in names]
        self.parts = nn.ModuleList(parts)
        inputs = sum(part.outputs for part in parts)
        self.net = nn.Sequential(
            nn.Linear(inputs, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, graph: Any) -> Tensor:
        """Return crystal features (B, F) of a batch."""
        features = torch.cat([part(graph) for part in self.parts], dim=1)
        return self.net(features.to(next(self.net.parameters()).dtype))


def _statistics(values: Tensor, graph: Any) -> Tensor:
    """Return mean, mean absolute deviation, minimum and maximum over each crystal's atoms (B, 4P) of values (N, P)."""
    mean = _mean(values, graph)
    deviation = _mean((values - mean.index_select(0, graph.batch)).abs(), graph)
    low, high = (scatter(values, graph.batch, dim_size=graph.num_graphs, reduce=how) for how in ("min", "max"))
    return torch.cat([mean, deviation, low, high], dim=1)


def _kinds(graph: Any) -> Tensor:
    """Return the number of elements in each crystal (B,)."""
    present = torch.zeros(graph.num_graphs, MAX_Z + 1, dtype=torch.float64, device=graph.z.device)
    present[graph.batch, graph.z] = 1.0
    return present.sum(dim=1)


def _mean(values: Tensor, graph: Any) -> Tensor:
    """Return the mean over each crystal's atoms (B, ...) of values of atoms (N, ...)."""
    total = scatter(values, graph.batch, dim_size=graph.num_graphs, reduce="sum")
    return total / torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)[:, None]
