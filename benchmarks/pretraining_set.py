"""Formation energies and gaps with more to learn from: what follows from the crystals, and a potential's bulk moduli.

python benchmarks/pretraining_set.py                    # runs/pretraining.parquet, a minute
cgnn train configs/pretraining.yaml -o data.path=runs/pretraining.parquet --output runs/pretraining

A network that is to be fitted on a hundred moduli should know beforehand what stiffness comes from: how tightly
crystals are bound, how densely they are packed, how short their bonds are. That is known without moduli; and what
an interatomic potential makes of them for small crystals is computed fast (``potential.py``).
"""

from __future__ import annotations

import argparse
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase.data import covalent_radii
from numpy.typing import NDArray
from pymatgen.core import Element
from study import DATA, ROOT, STUDIES

from cgnn.config import build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.graph.fields import vectors

Array = NDArray[np.float64]

# fmt: off
COHESIVE = {
    "H": 2.26, "Li": 1.63, "Be": 3.32, "B": 5.81, "C": 7.37, "N": 4.92, "O": 2.60, "F": 0.84, "Ne": 0.02, "Na": 1.113,
    "Mg": 1.51, "Al": 3.39, "Si": 4.63, "P": 3.43, "S": 2.85, "Cl": 1.40, "Ar": 0.08, "K": 0.934, "Ca": 1.84,
    "Sc": 3.90, "Ti": 4.85, "V": 5.31, "Cr": 4.10, "Mn": 2.92, "Fe": 4.28, "Co": 4.39, "Ni": 4.44, "Cu": 3.49,
    "Zn": 1.35, "Ga": 2.81, "Ge": 3.85, "As": 2.96, "Se": 2.46, "Br": 1.22, "Kr": 0.116, "Rb": 0.852, "Sr": 1.72,
    "Y": 4.37, "Zr": 6.25, "Nb": 7.57, "Mo": 6.82, "Tc": 6.85, "Ru": 6.74, "Rh": 5.75, "Pd": 3.89, "Ag": 2.95,
    "Cd": 1.16, "In": 2.52, "Sn": 3.14, "Sb": 2.75, "Te": 2.19, "I": 1.11, "Xe": 0.16, "Cs": 0.804, "Ba": 1.90,
    "La": 4.47, "Ce": 4.32, "Pr": 3.70, "Nd": 3.40, "Sm": 2.14, "Eu": 1.86, "Gd": 4.14, "Tb": 4.05, "Dy": 3.04,
    "Ho": 3.14, "Er": 3.29, "Tm": 2.42, "Yb": 1.60, "Lu": 4.43, "Hf": 6.44, "Ta": 8.10, "W": 8.90, "Re": 8.03,
    "Os": 8.17, "Ir": 6.94, "Pt": 5.84, "Au": 3.81, "Hg": 0.67, "Tl": 1.88, "Pb": 2.03, "Bi": 2.18, "Th": 6.20,
    "U": 5.55, "Pu": 3.60,
}
# fmt: on
"""Cohesive energy of elements (eV/atom). Source: Kittel, Introduction to Solid State Physics, chapter 3, table 1; of
hydrogen half the dissociation energy."""

MEANS = {
    "mean_electronegativity": ("X", False),
    "mean_melting_point": ("melting_point", True),
    "mean_bulk_modulus": ("bulk_modulus", True),
    "mean_radius": ("atomic_radius", False),
    "mean_mendeleev": ("mendeleev_no", False),
}
"""Column -> attribute of pymatgen's ``Element`` and whether its logarithm is meant."""

CORES = np.array([0.0, 0.0125, 0.34, 0.625, 0.725, 0.875, 0.95, 1.0, 1.0])
"""Radius within which atoms do not meet (Å), by the row of the periodic table. Half of Badger's distances between equal
rows for the first three (0.025, 0.68 and 1.25 Å), beyond them our continuation. Source: R. M. Badger, J. Chem. Phys. 2,
128 (1934)."""

FIRST_SHELL = 0.12
"""Width of the first shell: a bond that is longer than the shortest by this share counts exp(-1)."""
GPA = 160.2177  # eV/Å³


@cache
def of_element(attribute: str, log: bool = False) -> Array:
    """Return a property of the elements by atomic number (104,), ``nan`` where it is not known."""
    values = np.full(104, np.nan)
    for z in range(1, 104):
        try:
            value = float(getattr(Element.from_Z(z), attribute))
        except (TypeError, ValueError, AttributeError):
            continue
        values[z] = (np.log10(value) if value > 0 else np.nan) if log else value
    return values


def valence(z: int) -> int:
    """Return the number of electrons that take part in bonds, by the group."""
    element = Element.from_Z(z)
    if element.is_lanthanoid or element.is_actinoid:
        return 3
    return element.group if element.group <= 12 else element.group - 10


@cache
def charges() -> Array:
    """Return the numbers of valence electrons by atomic number (104,)."""
    return np.array([0.0, *(valence(number) for number in range(1, 104))])


def numbers(batch: Any) -> dict[str, Array]:
    """Return what follows from the crystals of a batch alone (B,), by column."""
    z, crystal, count = batch.z.numpy(), batch.batch.numpy(), batch.num_graphs
    atoms = np.bincount(crystal, minlength=count)
    volume = np.abs(np.linalg.det(batch.lattice.double().numpy()))
    source, target = batch.edge_index.numpy()
    distance = vectors(batch).norm(dim=1).double().numpy()
    radius = covalent_radii[z]
    ratio = distance / (radius[source] + radius[target])
    shortest = np.full(len(z), np.inf)
    np.minimum.at(shortest, target, ratio)
    weight = np.exp(-(((ratio / shortest[target] - 1) / FIRST_SHELL) ** 2))
    bonds = np.bincount(target, weight, len(z))

    def mean(values: Array) -> Array:
        known = np.isfinite(values)
        counts = np.bincount(crystal, known, count)
        total = np.bincount(crystal, np.where(known, values, 0.0), count)
        return np.divide(total, counts, out=np.full(count, np.nan), where=counts > 0)

    electronegativity = of_element("X")[z]
    bond = _stiffness(z[source], z[target], distance, ratio)
    found = {
        "volume_per_atom": volume / atoms,
        "valence_density": np.bincount(crystal, charges()[z], count) / volume,
        "packing": np.bincount(crystal, 4 / 3 * np.pi * radius**3, count) / volume,
        "bonds": mean(bonds),
        "uneven_bonds": np.sqrt(np.maximum(mean(bonds**2) - mean(bonds) ** 2, 0)),
        "bond_ratio": mean(shortest),
        "bond_length": mean(np.bincount(target, weight * distance, len(z)) / bonds),
        "overlap_density": np.bincount(crystal[target], weight * np.exp(-2 * ratio), count) / volume,
        "uneven_electronegativity": np.sqrt(np.maximum(mean(electronegativity**2) - mean(electronegativity) ** 2, 0)),
    }
    found |= {name: np.bincount(crystal[target], each, count) / volume for name, each in bond.items()}
    return found | {name: mean(of_element(*which)[z]) for name, which in MEANS.items()}


def _stiffness(z: Array, other: Array, distance: Array, ratio: Array) -> dict[str, Array]:
    r"""Return what bonds would add to a bulk modulus times volume, :math:`k d^2`, by three rules for k (E,) each.

    .. math:: \sqrt\zeta / d^4, \quad 1 / (d - c_i - c_j)^3, \quad \sqrt{E_i E_j} e^{-2 (q - 1)} / r_{ij}^2

    with the reduced nuclear charge :math:`\zeta`, the radii of cores c, the cohesive energies E of the elements, the
    length d, and the same over the covalent radii :math:`q = d / r_{ij}`. All fade as :math:`e^{-(q - 1)}` beyond the
    first shell. Units are left out: what is learned is a logarithm.

    Source: the first, AIP Advances 13, 115323 (2023); the second, Badger's rule, J. Chem. Phys. 2, 128 (1934); the
    third, the curvature of a Morse potential as deep as the bond is strong.
    """
    rows = np.array([0, *(Element.from_Z(number).row for number in range(1, 104))])
    energies = np.array([0.0, *(COHESIVE.get(Element.from_Z(number).symbol, np.nan) for number in range(1, 104))])
    charge = z * other / (z + other)
    core = CORES[rows[z]] + CORES[rows[other]]
    fading = np.exp(1 - ratio)
    return {
        "charge_stiffness": np.sqrt(charge) / distance**2 * fading,
        "core_stiffness": distance**2 / np.maximum(distance - core, 0.3) ** 3 * fading,
        "cohesive_stiffness": np.sqrt(energies[z] * energies[other]) * ratio**2 * fading**3,
    }


def cohesive_density(elements: Any, formation_energy: float, volume_per_atom: float) -> float:
    r"""Return the cohesive energy per volume (GPa), which bulk moduli follow; ``nan`` where an element's is not known.

    .. math:: \frac{\sum_i x_i E_i - E_f}{V_0}

    with the cohesive energies :math:`E_i` of the elements and the formation energy :math:`E_f` (eV/atom).
    """
    energies = [COHESIVE.get(element, np.nan) for element in elements]
    found = (np.mean(energies) - formation_energy) / volume_per_atom * GPA
    return float(found) if found > 0 else np.nan


def main() -> None:
    """Write the table."""
    warnings.filterwarnings("ignore", module="pymatgen|functools|__main__")  # pymatgen tells of each unknown property
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "pretraining.parquet")
    output: Path = parser.parse_args().output
    path = DATA / "formation_energy.parquet"
    energy = "formation_energy_per_atom"
    config = build({"targets": [{"name": energy, "unit": "eV/atom"}], "data": {"path": str(path)}})
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    starts = range(0, len(dataset), 256)
    blocks = [numbers(dataset.batch(np.arange(start, min(start + 256, len(dataset))))) for start in starts]
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    table = pd.read_parquet(path).merge(
        pd.DataFrame({"immutable_id": dataset.ids, **columns}), on="immutable_id", validate="one_to_one"
    )
    triples = zip(table["species_at_sites"], table[energy], table["volume_per_atom"], strict=True)
    table["cohesive_density"] = [cohesive_density(*triple) for triple in triples]
    stiff = pd.read_csv(STUDIES / "potential.csv", index_col="material_id")["bulk_modulus"]
    table["potential_bulk_modulus"] = table["immutable_id"].map(stiff.where(stiff > 0))
    output.parent.mkdir(exist_ok=True, parents=True)
    table.to_parquet(output)
    print(f"{output}: {len(table)} crystals, {len(table.columns)} columns")


if __name__ == "__main__":
    main()
