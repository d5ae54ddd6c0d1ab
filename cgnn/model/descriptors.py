"""What is known of a crystal without a graph: features of whole crystals, beside the pooled ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.utils import scatter

from cgnn.errors import choose
from cgnn.graph.fields import vectors
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


@dataclass(frozen=True)
class Surroundings:
    """The neighbours of all atoms of a batch, and how much each counts.

    Args:
        source: Neighbours (E,).
        target: The atoms whose neighbours they are (E,).
        vector: From an atom to its neighbour (E, 3), Å.
        distance: Its length (E,), Å.
        ratio: The same over the sum of the covalent radii (E,).
        fade: The envelope of messages (E,), so that a neighbour that leaves the graph does not jump out of sums.
        nearest: Distance of an atom to its nearest neighbour (N,), Å; its reach where it has none.
        weight: :math:`w_{ij} e^{1 - (d_{ij} / d_i)^6}` with the envelope w and the nearest distance :math:`d_i` (E,).
        bonds: Effective coordination: the sum of the weights (N,).
    """

    source: Tensor
    target: Tensor
    vector: Tensor
    distance: Tensor
    ratio: Tensor
    fade: Tensor
    nearest: Tensor
    weight: Tensor
    bonds: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """Return the sums over the neighbours of each atom (N, ...) of values of edges (E, ...)."""
        return scatter(values, self.target, dim_size=len(self.nearest), reduce="sum")

    def means(self, values: Tensor) -> Tensor:
        """Return the means over the neighbours of each atom (N, P) of values of edges (E, P)."""
        return self.sums(self.weight[:, None] * values) / self.bonds.clamp(min=1e-6)[:, None]


class Sites(Descriptor):
    """Features that follow from the surroundings of atoms.

    Source: effective coordination after Hoppe, Z. Kristallogr. 150, 23 (1979), doi:10.1524/zkri.1979.150.14.23.
    """

    FARTHEST = 10.0
    """Nearest distance of an atom without neighbours at the most, Å."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("radius", torch.as_tensor(covalent_radii(), dtype=torch.float32))
        self.register_buffer("electronegativity", torch.as_tensor(electronegativities(), dtype=torch.float32))

    def surroundings(self, graph: Any) -> Surroundings:
        """Return the neighbours of the atoms of a batch."""
        source, target = graph.edge_index
        vector = vectors(graph)
        distance = vector.norm(dim=1)
        ratio = distance / self._pairs("radius", graph).sum(dim=0)
        nearest = graph.reach.clamp(max=self.FARTHEST).scatter_reduce(0, target, distance, "amin")
        fade = envelope(distance, graph.reach.index_select(0, target))
        weight = (1 - (distance / nearest.index_select(0, target)) ** 6).exp() * fade
        bonds = scatter(weight, target, dim_size=len(graph.z), reduce="sum")
        return Surroundings(source, target, vector, distance, ratio, fade, nearest, weight, bonds)

    def of_atoms(self, graph: Any, around: Surroundings) -> Tensor:
        """Return nearest distance, the same over covalent radii, coordination and polarity of atoms (N, 4)."""
        radius = self.get_buffer("radius").to(around.distance).index_select(0, graph.z)
        reach = graph.reach.clamp(max=self.FARTHEST)
        ratio = (reach / (2 * radius)).scatter_reduce(0, around.target, around.ratio, "amin")
        polarity = around.means(self.steps(graph)[:, None])[:, 0]
        return torch.stack([around.nearest, ratio, around.bonds, polarity], dim=1)

    def steps(self, graph: Any) -> Tensor:
        """Return the differences of electronegativity along the edges (E,)."""
        one, other = self._pairs("electronegativity", graph)
        return (one - other).abs()

    def _pairs(self, name: str, graph: Any) -> Tensor:
        """Return a number of the elements at both ends of the edges (2, E)."""
        values = self.get_buffer(name).to(graph.pos.dtype).index_select(0, graph.z)
        return torch.stack([values.index_select(0, end) for end in graph.edge_index])


class Environments(Sites):
    r"""How atoms are surrounded, number of elements, packing and density of bonds (B, 19).

    Of each atom the distance :math:`d_i` to its nearest neighbour, the same over the sum of the covalent radii, the
    effective coordination :math:`n_i` and the difference of electronegativity to the neighbours:

    .. math:: n_i = \sum_j w_{ij} e^{1 - (d_{ij} / d_i)^6}, \quad \frac{1}{n_i} \sum_j w_{ij} e^{1 - (d_{ij} / d_i)^6}
        \, |\chi_i - \chi_j|

    (`Surroundings`). Mean, mean absolute deviation, minimum and maximum over the atoms. Shifted and scaled by fixed
    numbers to about zero and one.
    """

    outputs = 4 * 4 + 3

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([2.4, 1.0, 7.0, 0.8]))
        self.register_buffer("scale", torch.tensor([0.6, 0.15, 4.0, 0.6]))

    def forward(self, graph: Any) -> Tensor:
        """Return the features (B, 19)."""
        around = self.surroundings(graph)
        atoms = (self.of_atoms(graph, around) - self.get_buffer("shift")) / self.get_buffer("scale")
        volume = graph.lattice.det().abs() / torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)
        spheres = torch.pi / 6 * _mean(around.nearest[:, None] ** 3, graph)[:, 0]
        density = _mean(around.bonds[:, None], graph)[:, 0].clamp(min=1e-3) / volume
        kinds = (counts(graph) > 0).sum(dim=1)
        whole = [(kinds - 3.0), ((spheres / volume).log10() + 0.35) / 0.15, (density.log10() + 0.4) / 0.25]
        return torch.cat([_statistics(atoms, graph), torch.stack(whole, dim=1)], dim=1)


class Arrangements(Sites):
    r"""How neighbours are arranged around atoms, and how much atoms of one element differ (B, 52).

    With unit vectors :math:`u_{ij}` to the neighbours, means :math:`\langle\,\rangle_i` over them with the weights of
    the effective coordination, distances over the sum of the covalent radii :math:`x_{ij}`, and the envelope w:

    - asymmetry :math:`|\langle u \rangle|`, zero at a centre of inversion;
    - direction :math:`\mathrm{tr}\, Q^2` and volume :math:`27 \det Q` of :math:`Q = \langle u u^T \rangle`: 1/3 and 1
      for a cube, 1/2 and 0 for a layer, 1 and 0 for a chain;
    - standard deviation of the distances over their mean;
    - share of neighbours of the same element;
    - logarithm of the sum of bond valences :math:`w_{ij} e^{(r_i + r_j - d_{ij}) / 0.37}`;
    - smallest x to an atom of the same element, and to one whose electronegativity differs by less than 0.5.

    Of these mean, mean absolute deviation, minimum and maximum over the atoms (32). Then the mean number of neighbours
    at x = 0.8 to 2.2, smeared by 0.1 (10). At last how far atoms are from the mean of their element in the crystal, in
    the mean over the atoms, which is zero where all atoms of an element are equivalent: of the four numbers of
    `Environments`, of the first four here, of the valence and of the number of neighbours (10). Shifted and scaled by
    fixed numbers to about zero and one; of the result the inverse hyperbolic sine.

    Source: bond valences after Brown and Altermatt, Acta Cryst. B41, 244 (1985), doi:10.1107/S0108768185002063, with
    covalent radii in place of fitted lengths.
    """

    outputs = 8 * 4 + 10 + 10
    FAR = 3.0
    """Distance over radii to a neighbour that is not there."""
    SIMILAR = 0.5
    SOFTNESS = 0.37
    """Of bond valences, Å."""
    # mean and standard deviation over 4,000 crystals of the Materials Project, by rows: mean, deviation, minimum and
    # maximum of the eight numbers, neighbours by distance, deviations within elements
    _SHIFT = (
        *(0.31, 0.53, 0.58, 0.034, 0.099, 1.6, 2.3, 2.1),
        *(0.18, 0.13, 0.22, 0.012, 0.059, 0.3, 0.27, 0.25),
        *(0.031, 0.34, 0.35, 0.014, 0.014, 1.1, 1.9, 1.7),
        *(0.53, 0.68, 0.96, 0.055, 0.18, 2.2, 2.8, 2.6),
        *(1.2, 3.5, 2.5, 0.99, 0.62, 0.62, 0.64, 0.68, 0.68, 0.6),
        *(0.025, 0.009, 0.15, 0.027, 0.045, 0.025, 0.035, 0.0041, 0.045, 0.32),
    )
    _SCALE = (
        *(0.26, 0.18, 0.31, 0.016, 0.19, 0.6, 0.3, 0.39),
        *(0.15, 0.11, 0.17, 0.0077, 0.1, 0.16, 0.16, 0.18),
        *(0.087, 0.048, 0.42, 0.016, 0.094, 0.72, 0.41, 0.44),
        *(0.4, 0.29, 0.13, 0.02, 0.3, 0.59, 0.31, 0.44),
        *(0.92, 1.5, 1.3, 0.78, 0.64, 0.74, 0.67, 0.71, 0.75, 0.67),
        *(0.037, 0.012, 0.18, 0.052, 0.061, 0.037, 0.061, 0.0048, 0.055, 0.36),
    )

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(0.8, 2.2, 10))
        self.register_buffer("shift", torch.tensor(self._SHIFT))
        self.register_buffer("scale", torch.tensor(self._SCALE))

    def forward(self, graph: Any) -> Tensor:
        """Return the features (B, 52)."""
        around = self.surroundings(graph)
        bonds, valence = self._of_bonds(around), self._valence(graph, around)
        like = (graph.z[around.source] == graph.z[around.target]).to(around.distance)
        similar = (self.steps(graph) < self.SIMILAR).to(around.distance)
        share = around.means(like[:, None])
        closest = torch.stack([self._closest(around, like), self._closest(around, similar)], dim=1)
        smeared = (-((around.ratio[:, None] - self.get_buffer("grid")) ** 2) / (2 * 0.1**2)).exp()
        numbers = around.sums(smeared * around.fade[:, None])
        own = [self.of_atoms(graph, around), bonds, valence, numbers.sum(dim=1, keepdim=True)]
        features = [
            _statistics(torch.cat([bonds, share, valence, closest], dim=1), graph),
            _mean(numbers, graph),
            _deviation_within_elements(torch.cat(own, dim=1), graph),
        ]
        # asinh: many of these are zero in most crystals and large in a few
        return ((torch.cat(features, dim=1) - self.get_buffer("shift")) / self.get_buffer("scale")).asinh()

    @staticmethod
    def _of_bonds(around: Surroundings) -> Tensor:
        """Return asymmetry, direction, volume and spread of the distances of atoms (N, 4)."""
        unit = around.vector / around.distance[:, None].clamp(min=1e-6)
        asymmetry = around.means(unit).square().sum(dim=1)
        Q = around.means((unit[:, :, None] * unit[:, None, :]).flatten(1)).reshape(-1, 3, 3)
        direction = Q.square().sum(dim=(1, 2))
        # a product of vectors, because the gradient of det is not defined where Q is singular
        volume = 27 * (Q[:, 0] * torch.linalg.cross(Q[:, 1], Q[:, 2])).sum(dim=1)
        mean = around.means(around.distance[:, None])
        beyond = (around.distance[:, None] - mean.index_select(0, around.target)).square()
        spread = (around.means(beyond) / mean.clamp(min=1e-3).square())[:, 0]
        # the roots have no slope at zero, where symmetry puts many atoms
        return torch.stack([(asymmetry + 1e-6).sqrt(), direction, volume, (spread + 1e-6).sqrt()], dim=1)

    def _valence(self, graph: Any, around: Surroundings) -> Tensor:
        """Return the logarithm of the sum of bond valences of atoms (N, 1)."""
        radii = self._pairs("radius", graph).sum(dim=0)
        terms = around.fade * ((radii - around.distance) / self.SOFTNESS).clamp(max=3.0).exp()
        return (around.sums(terms) + 1e-3).log()[:, None]

    def _closest(self, around: Surroundings, is_meant: Tensor) -> Tensor:
        """Return the smallest distance over radii to some neighbours (N,); it fades to `FAR`."""
        closeness = is_meant * around.fade * (self.FAR - around.ratio).clamp(min=0)
        return self.FAR - torch.zeros_like(around.nearest).scatter_reduce(0, around.target, closeness, "amax")


class Stoichiometry(Descriptor):
    """Atoms in the reduced formula, its largest number, number of elements, smallest and largest share (B, 5).

    Numbers of atoms as logarithms. Shifted and scaled by fixed numbers to about zero and one.
    """

    outputs = 5

    def forward(self, graph: Any) -> Tensor:
        """Return the features (B, 5)."""
        number = counts(graph)
        atoms, kinds = number.sum(dim=1), (number > 0).sum(dim=1)
        largest = number.amax(dim=1)
        smallest = torch.where(number > 0, number, atoms[:, None]).amin(dim=1)
        formulas = _common_divisor(number).double()
        features = [
            (atoms / formulas).log10() - 0.8,
            (largest / formulas).log10() - 0.5,
            kinds - 3.0,
            smallest / atoms / 0.2 - 1,
            largest / atoms / 0.2 - 2.5,
        ]
        return torch.stack(features, dim=1)


DESCRIPTORS: dict[str, Callable[[], Descriptor]] = {
    "element_statistics": ElementStatistics,
    "volume": Volume,
    "environments": Environments,
    "arrangements": Arrangements,
    "stoichiometry": Stoichiometry,
}
"""Features of whole crystals; each is the same in every cell, orientation and order of the atoms."""


VERSION = 1
"""Of the numbers that descriptors give: one more where any of them changes, so that stored ones are made again."""


_FIELD = "descriptors "


def field_of(names: Sequence[str]) -> str:
    """Return the field of a batch in which these descriptors (B, P) stand where they were made before."""
    return _FIELD + " ".join(names)


class CrystalDescriptors(nn.Module):
    """A small network over named descriptors of crystals, which is added to the pooled features.

    Args:
        names: Entries of `DESCRIPTORS`.
        width: Features per crystal F; None for the descriptors themselves (B, P).
        dropout: Share of the hidden features that is dropped in training.
    """

    def __init__(self, names: Sequence[str], width: int | None, dropout: float = 0.0) -> None:
        super().__init__()
        parts = [choose(DESCRIPTORS, name, "descriptor")() for name in names]
        self.field = field_of(names)
        self.parts = nn.ModuleList(parts)
        self.outputs = sum(part.outputs for part in parts) if width is None else width
        self.net: nn.Sequential | None = None
        if width is not None:
            inputs = sum(part.outputs for part in parts)
            self.net = nn.Sequential(
                nn.Linear(inputs, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
            )

    def forward(self, graph: Any) -> Tensor:
        """Return crystal features (B, F) of a batch."""
        made = self.field in graph
        features = graph[self.field] if made else torch.cat([part(graph) for part in self.parts], dim=1)
        return features if self.net is None else self.net(features.to(next(self.net.parameters()).dtype))


def changed(graph: Any, **fields: Tensor) -> Any:
    """Return a batch with some other fields, and without descriptors that were made of the old ones."""
    twin = copy.copy(graph)
    for name in [name for name in twin.keys() if name.startswith(_FIELD)]:  # noqa: SIM118 - no mapping
        del twin[name]
    for name, values in fields.items():
        twin[name] = values
    return twin


def _statistics(values: Tensor, graph: Any) -> Tensor:
    """Return mean, mean absolute deviation, minimum and maximum over each crystal's atoms (B, 4P) of values (N, P)."""
    mean = _mean(values, graph)
    deviation = _mean((values - mean.index_select(0, graph.batch)).abs(), graph)
    low, high = (scatter(values, graph.batch, dim_size=graph.num_graphs, reduce=how) for how in ("min", "max"))
    return torch.cat([mean, deviation, low, high], dim=1)


def counts(graph: Any) -> Tensor:
    """Return the number of atoms of each element in each crystal (B, MAX_Z + 1)."""
    number = torch.zeros(graph.num_graphs * (MAX_Z + 1), dtype=torch.int64, device=graph.z.device)
    place = graph.batch * (MAX_Z + 1) + graph.z
    return number.index_add(0, place, torch.ones_like(place)).reshape(graph.num_graphs, -1)


def _common_divisor(number: Tensor) -> Tensor:
    """Return the greatest common divisor of each row (B,) of numbers (B, P)."""
    while number.shape[1] > 1:
        number = functional.pad(number, (0, number.shape[1] % 2))  # the divisor of a number and zero is the number
        number = torch.gcd(number[:, ::2], number[:, 1::2])
    return number[:, 0]


def _deviation_within_elements(values: Tensor, graph: Any) -> Tensor:
    """Return how far atoms are from their element's mean in the crystal, in the mean (B, P) of values (N, P)."""
    _, kind = torch.unique(graph.batch * (MAX_Z + 1) + graph.z, return_inverse=True)
    mean = scatter(values, kind, reduce="mean")
    return _mean((values - mean.index_select(0, kind)).abs(), graph)


def _mean(values: Tensor, graph: Any) -> Tensor:
    """Return the mean over each crystal's atoms (B, ...) of values of atoms (N, ...)."""
    total = scatter(values, graph.batch, dim_size=graph.num_graphs, reduce="sum")
    return total / torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)[:, None]
