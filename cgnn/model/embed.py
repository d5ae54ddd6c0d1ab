"""First features: element vectors for atoms, Gaussians and an envelope for edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Element
from torch import Tensor, nn

from cgnn.errors import choose

MAX_Z = 118
LAST_DESCRIBED = 103
"""Lawrencium; beyond it element data is missing, and rows of property tables are zero."""

ELEMENT_TABLE_VERSION = 1
"""Raised when a table below changes; models carry their own tables, so old ones keep their numbers."""

Table = NDArray[np.float64]

_CONTINUOUS: dict[str, tuple[str, bool]] = {
    "electronegativity": ("X", False),
    "atomic_mass": ("atomic_mass", True),
    "atomic_radius": ("atomic_radius", False),
    "atomic_radius_calculated": ("atomic_radius_calculated", False),
    "van_der_waals_radius": ("van_der_waals_radius", False),
    "average_ionic_radius": ("average_ionic_radius", False),
    "first_ionization_energy": ("ionization_energy", False),
    "electron_affinity": ("electron_affinity", False),
    "molar_volume": ("molar_volume", True),
    "melting_point": ("melting_point", True),
    "boiling_point": ("boiling_point", True),
    "density_of_solid": ("density_of_solid", True),
    "bulk_modulus": ("bulk_modulus", True),
    "rigidity_modulus": ("rigidity_modulus", True),
    "thermal_conductivity": ("thermal_conductivity", True),
    "mendeleev_number": ("mendeleev_no", False),
}
"""Property -> (attribute of pymatgen's ``Element``, whether its logarithm is taken)."""


def _number(element: Element, attribute: str, log: bool) -> float:
    try:
        number = float(getattr(element, attribute))
    except (TypeError, ValueError, KeyError, AttributeError):
        return math.nan  # pymatgen says in several ways that a value is unknown
    if not math.isfinite(number) or number == 0 or (log and number < 0):
        return math.nan  # pymatgen writes 0 where a radius or modulus is unknown
    return math.log10(number) if log else number


def _valence(element: Element) -> list[float]:
    """Return the electrons of the s, p, d and f shells that take part in bonding."""
    count = dict.fromkeys("spdf", 0)
    outer = element.row
    for n, orbital, electrons in element.full_electronic_structure:
        inner_d = orbital == "d" and n == outer - 1 and element.block in "df"
        inner_f = orbital == "f" and n == outer - 2 and element.block == "f"
        if n == outer or inner_d or inner_f:
            count[orbital] += electrons
    return [float(count[orbital]) for orbital in "spdf"]


def _block(element: Element) -> list[float]:
    # pymatgen takes the block from the group, which puts helium among the p elements
    return [float(("s" if element.Z == 2 else element.block) == block) for block in "spdf"]


def _elements() -> list[Element]:
    return [Element.from_Z(z) for z in range(1, LAST_DESCRIBED + 1)]


def _by_atomic_number(rows: Table) -> Table:
    """Return a table (119, P) of the rows of the described elements, zero elsewhere."""
    return np.pad(rows, ((1, MAX_Z - len(rows)), (0, 0)))


@cache
def one_hot() -> Table:
    """Return one digit per element (119, 119); row z belongs to atomic number z."""
    return np.eye(MAX_Z + 1)


@cache
def properties() -> Table:
    """Return continuous, standardised element properties (119, P).

    Columns: the properties of `_CONTINUOUS` with covalent radius, row, group, the valence electrons by
    shell, one digit per block; then one digit for each property that is unknown for some element. Mean
    zero and variance one over the elements where a property is known, zero where it is not.

    Source: pymatgen's element data and its covalent radii (Cordero et al., Dalton Trans. 2832, 2008).
    """
    rows = []
    with _Quiet():
        for element in _elements():
            numbers = [_number(element, *spec) for spec in _CONTINUOUS.values()]
            numbers += [CovalentRadius.radius.get(element.symbol, math.nan), float(element.row)]
            numbers += [float(element.group), *_valence(element)]
            rows.append(numbers + _block(element))
    raw = np.array(rows)
    known = np.isfinite(raw)
    scaled = np.where(known, (raw - np.nanmean(raw, axis=0)) / np.nanstd(raw, axis=0), 0.0)
    gaps = (~known[:, ~known.all(axis=0)]).astype(float)
    return _by_atomic_number(np.hstack([scaled, gaps]))


@cache
def atomic_volumes() -> Table:
    """Return the volume of an atom in the pure element (119,), Å³, from its molar volume; 20 where that is unknown."""
    with _Quiet():
        molar = np.array([_number(element, "molar_volume", False) for element in _elements()])
    return _by_atomic_number(np.where(np.isfinite(molar), 1.66054 * molar, 20.0)[:, None])[:, 0]


@cache
def covalent_radii() -> Table:
    """Return the covalent radius by atomic number (119,), Å, zero for no atom; 1.5 where it is unknown.

    Source: Cordero et al., Dalton Trans. 2832 (2008), doi:10.1039/b801115j, as pymatgen has them.
    """
    radii = [CovalentRadius.radius.get(Element.from_Z(z).symbol, 1.5) for z in range(1, MAX_Z + 1)]
    return np.array([0.0, *radii])


@cache
def electronegativities() -> Table:
    """Return Pauling's electronegativity by atomic number (119,), zero for no atom; 1.5 where there is none."""
    with _Quiet():
        known = [_number(Element.from_Z(z), "X", False) for z in range(1, MAX_Z + 1)]
    return np.array([0.0, *np.where(np.isfinite(known), known, 1.5)])


def _digits(value: float, low: float, high: float, count: int) -> list[float]:
    """Return a one-hot of ``count`` equal bins from low to high; outer values take the outer bins."""
    digits = [0.0] * count
    if math.isfinite(value):
        digits[min(max(int((value - low) / (high - low) * count + 1e-9), 0), count - 1)] = 1.0
    return digits


@cache
def cgcnn() -> Table:
    """Return the property one-hots of the original CGCNN (119, 92), from pymatgen's element data.

    Group (18 digits), period (8), electronegativity (10 bins, 0.5 to 4.0), covalent radius (10, 25 to 250
    pm), valence electrons (12), log of the first ionisation energy (10, ln eV 1.3 to 3.3), electron affinity
    (10, -3 to 3.7 eV), block (4), log of the atomic volume (10, ln cm³/mol 1.5 to 4.3); all digits zero where
    a value is unknown.

    Source: Xie and Grossman, PRL 120, 145301 (2018), doi:10.1103/PhysRevLett.120.145301, table S2.
    """
    rows = []
    with _Quiet():
        for element in _elements():
            radius = 100 * CovalentRadius.radius.get(element.symbol, math.nan)
            ionization = _number(element, "ionization_energy", False)
            volume = _number(element, "molar_volume", False)
            rows.append(
                _digits(element.group, 0.5, 18.5, 18)
                + _digits(element.row, 0.5, 8.5, 8)
                + _digits(_number(element, "X", False), 0.5, 4.0, 10)
                + _digits(radius, 25, 250, 10)
                + _digits(sum(_valence(element)), 0.5, 12.5, 12)
                + _digits(math.log(ionization), 1.3, 3.3, 10)
                + _digits(_number(element, "electron_affinity", False), -3, 3.7, 10)
                + _block(element)
                + _digits(math.log(volume), 1.5, 4.3, 10)
            )
    return _by_atomic_number(np.array(rows))


ELEMENTS: dict[str, Callable[[], Table]] = {"one_hot": one_hot, "properties": properties, "cgcnn": cgcnn}


class ElementEmbedding(nn.Module):
    """Vectors of elements: the sum of what each named table gives.

    A table of digits passes through one linear map, the continuous one through a small network. The
    tables are buffers, so a stored model does not depend on the element data of the reader's machine.

    Args:
        names: Entries of `ELEMENTS`.
        width: Features per atom.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.nets = nn.ModuleDict()
        for name in names:
            table = torch.as_tensor(choose(ELEMENTS, name, "element vector")(), dtype=torch.float32)
            self.register_buffer(f"table_{name}", table)
            self.nets[name] = _net(table.shape[1], width, deep=name == "properties")

    def forward(self, z: Tensor) -> Tensor:
        """Return the vectors (N, F) of atomic numbers (N,)."""
        table = torch.stack([net(self.get_buffer(f"table_{name}")) for name, net in self.nets.items()])
        return table.sum(0).index_select(0, z)


def _net(inputs: int, width: int, deep: bool) -> nn.Module:
    if not deep:
        return nn.Linear(inputs, width)
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class GaussianBasis(nn.Module):
    r"""Distances as Gaussians.

    .. math:: e_k(d) = \exp(-(d - \mu_k)^2 / \sigma^2)

    Values below exp(-30) = 1e-13 are zero, without a step: products with smaller numbers would become
    denormal, with which a CPU calculates many times slower.

    Args:
        count: Number of Gaussians K.
        low: Centre of the first, Å.
        high: Centre of the last, Å.
        width: sigma, Å; the distance of two centres by default, as in the original CGCNN.
    """

    _FLOOR = -30.0
    _POINTS_PER_WIDTH = 32
    """Grid points in a width: cubic interpolation between them errs by less than 3e-7."""
    _MAX_POINTS = 8192

    centers: Tensor

    def __init__(self, count: int, low: float, high: float, width: float | None = None) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(low, high, count, dtype=torch.float64).float())
        self.width = width or (high - low) / (count - 1)
        self.step = self.width / self._POINTS_PER_WIDTH
        last = high + math.sqrt(-self._FLOOR) * self.width
        self.points = math.ceil(last / self.step) + 4
        self._table: Tensor | None = None

    def forward(self, distance: Tensor) -> Tensor:
        """Return the features (E, K) of distances (E,), Å."""
        exponent = -(((distance[:, None] - self.centers) / self.width) ** 2)
        return torch.exp(exponent.clamp(min=self._FLOOR)) - math.exp(self._FLOOR)

    @property
    def has_grid(self) -> bool:
        """Whether the grid of `table` has a reasonable size."""
        return self.points <= self._MAX_POINTS

    def table(self) -> Tensor:
        """Return the features at grid points of distance (M, K); the second point is at zero."""
        if self._table is None:
            places = torch.arange(-1, self.points - 1, dtype=torch.float64, device=self.centers.device)
            self._table = self(self.step * places).float()
        return self._table

    def on_grid(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first of the four rows of `table` around each distance (E,), and the place between the middle two.

        Beyond the grid every feature is zero, as in its last rows.
        """
        position = (distance / self.step).clamp(max=self.points - 3.0)
        cell = position.floor().clamp(max=self.points - 4)
        return cell.int(), (position - cell).float()


def envelope(distance: Tensor, reach: Tensor) -> Tensor:
    r"""Return the weight of a message by distance: one at zero, zero with zero slope at the reach.

    .. math:: w(d) = (1 - (d / r)^4)^2

    Args:
        distance: (E,), Å.
        reach: Cutoff of the receiving atom (E,), Å; ``inf`` gives weight one.
    """
    ratio = (distance / reach).clamp(max=1.0)
    return (1 - ratio**4) ** 2


class _Quiet:
    """Silence pymatgen's warnings about unknown properties: a gap is a value here."""

    def __enter__(self) -> None:
        import warnings

        self._catch = warnings.catch_warnings()
        self._catch.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        self._catch.__exit__(*error)  # type: ignore[arg-type]
