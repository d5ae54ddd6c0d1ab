"""Make the embedded data set: elastic moduli of ordered metals and alloys from ASE's EMT potential.

    python data/make_elasticity_emt.py --output data/elasticity-emt.json.gz

Every prototype of `PROTOTYPES` is filled with Al, Cu, Ag, Au, Ni, Pd and Pt in every distinct way, relaxed
(cell and atoms), strained, and kept if it is a minimum of the energy. What is dropped is counted by reason.
The labels are those of an approximate potential: `README.md` beside this file says what they are.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from ase import Atoms
from ase.calculators.emt import EMT
from ase.data import atomic_numbers, reference_states
from ase.filters import FrechetCellFilter
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.units import GPa
from pymatgen.analysis.elasticity import ElasticTensor, Strain, Stress
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Structure
from tqdm import tqdm

# EMT also has H, C, N and O, "just for fun" as its own source says.
ELEMENTS = ("Ag", "Al", "Au", "Cu", "Ni", "Pd", "Pt")
# EMT's cutoff is steep (0.04 Å): with the usual strains of 0.5 to 1 % the moduli of crystals with neighbours
# there were off by up to 14 %. With 0.1 % and these forces they are converged to 0.2 %, nearly all to 0.02 %.
STRAIN = 0.001
FMAX = 1e-6  # eV/Å
MAX_STEPS = 500
# Below this a crystal is a hair from falling over and its G says more about that than about the metal.
MIN_STIFFNESS = 5.0  # GPa, smallest eigenvalue of the 6x6 stiffness matrix in Kelvin's notation
HESSIAN_STEP = 0.005  # Å


@dataclass(frozen=True)
class Prototype:
    """A crystal with letters for elements: cell and positions in any unit of length, scaled when filled."""

    cell: np.ndarray
    points: np.ndarray
    pattern: str


# Two vectors in a lattice plane and the step to the next plane, in units of the cubic lattice constant.
# Colouring one plane after the other gives the superlattices (A)n(B)m, most of the classic alloys among them.
LAYERS = {
    "fcc001": ((0.5, 0.5, 0), (0.5, -0.5, 0), (0.5, 0, 0.5)),
    "fcc011": ((1, 0, 0), (0, 0.5, -0.5), (0.5, 0.5, 0)),
    "fcc111": ((0.5, -0.5, 0), (0, 0.5, -0.5), (0.5, 0.5, 0)),
    "fcc201": ((0, 1, 0), (0.5, 0.5, -1), (0, 0.5, 0.5)),
    "bcc001": ((1, 0, 0), (0, 1, 0), (0.5, 0.5, 0.5)),
    "bcc111": ((1, -1, 0), (0, 1, -1), (-0.5, 0.5, 0.5)),
    "sc111": ((1, -1, 0), (0, 1, -1), (1, 0, 0)),
}
HEXAGON = np.array([[1, 0, 0], [0.5, 0.75**0.5, 0]])
LAYER_HEIGHT = (2 / 3) ** 0.5


def stack(layer: str, pattern: str) -> Prototype:
    """Colour the lattice planes `layer` one after the other, one atom to a plane."""
    first, second, step = np.array(LAYERS[layer], dtype=float)
    cell = np.array([first, second, len(pattern) * step])
    return Prototype(cell, np.arange(len(pattern))[:, None] * step, pattern)


def close_packed(order: str, pattern: str) -> Prototype:
    """Stack hexagonal layers in the order "AB" (hcp), "ABAC" (double hcp), ..., one atom to a layer."""
    cell = np.vstack([HEXAGON, [0, 0, len(order) * LAYER_HEIGHT]])
    shifts = np.array(["ABC".index(letter) / 3 for letter in order])
    points = shifts[:, None] * HEXAGON.sum(axis=0)
    points[:, 2] = np.arange(len(order)) * LAYER_HEIGHT
    return Prototype(cell, points, pattern)


def dilute(cell: list) -> Prototype:
    """Put one B into a supercell of fcc A, its lattice vectors in units of the cubic lattice constant."""
    supercell = np.array(cell, dtype=float)
    grid = np.array(list(itertools.product(range(-8, 9), repeat=3))) @ np.array(LAYERS["fcc001"])
    fractions = grid @ np.linalg.inv(supercell)
    points = grid[np.all((fractions > -1e-9) & (fractions < 1 - 1e-9), axis=1)]
    pattern = ["A" if point.any() else "B" for point in points]
    return Prototype(supercell, points, "".join(pattern))


def b19() -> Prototype:
    """Order hcp by rows: every atom has eight unlike neighbours and four like ones."""
    width = 3**0.5
    rows = [(0, 0, 0), (0.5, width / 2, 0), (0, 2 * width / 3, LAYER_HEIGHT), (0.5, width / 6, LAYER_HEIGHT)]
    return Prototype(np.diag([1, width, 2 * LAYER_HEIGHT]), np.array(rows), "ABAB")


def d0_19() -> Prototype:
    """Order hcp A3B: in a doubled cell the B atoms of one layer sit over gaps of the B atoms of the next."""
    corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)]) @ HEXAGON
    above = corners + HEXAGON.sum(axis=0) / 3 + [0, 0, LAYER_HEIGHT]
    cell = np.vstack([2 * HEXAGON, [0, 0, 2 * LAYER_HEIGHT]])
    return Prototype(cell, np.vstack([corners, above]), "BAAAAAAB")


FCC_CUBE = np.array([(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])
ZINC_BLENDE = (
    np.array([(0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]),
    np.array([(0, 0, 0), (0.25, 0.25, 0.25)]),
)

PROTOTYPES = {
    "fcc": stack("fcc001", "A"),
    "hcp": close_packed("AB", "AA"),
    "dhcp": close_packed("ABAC", "AAAA"),
    "9R": close_packed("ABCBCACAB", "AAAAAAAAA"),
    "bcc": stack("bcc001", "A"),
    "sc": stack("sc111", "A"),
    "diamond": Prototype(*ZINC_BLENDE, "AA"),
    "L1_0": stack("fcc001", "AB"),
    "L1_1": stack("fcc111", "AB"),
    "B2": stack("bcc001", "AB"),
    "B32": stack("bcc111", "AABB"),
    "B1": stack("sc111", "AB"),
    "B3": Prototype(*ZINC_BLENDE, "AB"),
    "Bh": close_packed("AB", "AB"),
    "B19": b19(),
    "fcc001-AABB": stack("fcc001", "AABB"),
    "fcc011-AABB": stack("fcc011", "AABB"),
    "fcc111-AABB": stack("fcc111", "AABB"),
    "fcc201-AABB": stack("fcc201", "AABB"),
    "fcc001-AAB": stack("fcc001", "AAB"),
    "MoPt2": stack("fcc011", "AAB"),
    "fcc111-AAB": stack("fcc111", "AAB"),
    "C11_b": stack("bcc001", "AAB"),
    "L1_2": Prototype(np.eye(3), FCC_CUBE, "BAAA"),
    "D0_22": stack("fcc201", "AAAB"),
    "D0_3": stack("bcc111", "AAAB"),
    "D0_19": d0_19(),
    "D1_a": stack("fcc201", "AAAAB"),
    "Ca7Ge": dilute([(1, 1, 0), (1, 0, 1), (0, 1, 1)]),
    "Pt8Ti": dilute([(1.5, 1.5, 0), (1.5, -1.5, 0), (1.5, 0, 0.5)]),
    "fcc001-ABC": stack("fcc001", "ABC"),
    "fcc111-ABC": stack("fcc111", "ABC"),
    "L1_2-ternary": Prototype(np.eye(3), FCC_CUBE, "BCAA"),
    "L2_1": stack("bcc111", "ABAC"),
}


@dataclass(frozen=True)
class Candidate:
    """One prototype filled with elements, and its stable name."""

    material_id: str
    prototype: str
    symbols: tuple[str, ...]


def candidates() -> Iterator[Candidate]:
    """Fill every prototype in every way that differs.

    In all of them letters that occur equally often are equivalent, so the formula tells the ways apart.
    """
    for name, prototype in PROTOTYPES.items():
        letters = sorted(set(prototype.pattern))
        seen = set()
        for elements in itertools.permutations(ELEMENTS, len(letters)):
            symbols = tuple(elements[letters.index(letter)] for letter in prototype.pattern)
            formula = Composition.from_dict(Counter(symbols)).reduced_formula
            if formula not in seen:
                seen.add(formula)
                yield Candidate(f"emt-{formula}-{name}", name, symbols)


def start(candidate: Candidate) -> Atoms:
    """Build the crystal in its reduced cell, scaled until nearest neighbours touch."""
    prototype = PROTOTYPES[candidate.prototype]
    crystal = Structure(prototype.cell, candidate.symbols, prototype.points, coords_are_cartesian=True)
    crystal = crystal.get_reduced_structure()
    atoms = as_atoms(crystal)
    # All seven elements are fcc metals: neighbours at a / sqrt(2).
    touching = np.mean([reference_states[atomic_numbers[s]]["a"] for s in candidate.symbols]) / 2**0.5
    atoms.set_cell(atoms.cell * (touching / shortest_distance(atoms)), scale_atoms=True)
    return atoms


def as_atoms(crystal: Structure) -> Atoms:
    symbols = [site.specie.symbol for site in crystal]
    return Atoms(symbols, scaled_positions=crystal.frac_coords, cell=crystal.lattice.matrix, pbc=True)


def shortest_distance(atoms: Atoms) -> float:
    reach = (atoms.get_volume() / len(atoms)) ** (1 / 3)
    return float(neighbor_list("d", atoms, 2 * reach).min())


class RejectedError(Exception):
    """The crystal is not a minimum of the energy worth keeping; the message says why."""


def relax(atoms: Atoms) -> None:
    """Relax cell and atoms together, in place."""
    atoms.calc = EMT()
    if not BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=FMAX, steps=MAX_STEPS):
        raise RejectedError("relaxation did not converge")


def lowest_force_constant(atoms: Atoms) -> float:
    """Return the smallest force constant of the atoms of one cell against each other, in eV/Å².

    Relaxing a symmetric crystal stops at saddle points too; this and the stiffness tensor tell them apart.
    """
    probe = atoms.copy()
    probe.calc = EMT()
    rows = []
    for index in np.ndindex(len(atoms), 3):
        push = np.zeros((len(atoms), 3))
        push[index] = HESSIAN_STEP
        forces = []
        for sign in (1, -1):
            probe.positions = atoms.positions + sign * push
            forces.append(probe.get_forces().ravel())
        rows.append((forces[1] - forces[0]) / (2 * HESSIAN_STEP))
    hessian = np.array(rows)
    # The first three are the free translations.
    return float(np.sort(np.linalg.eigvalsh((hessian + hessian.T) / 2))[3:].min(initial=np.inf))


def strains() -> list[Strain]:
    """List the twelve strains: plus and minus along each of the six independent directions."""
    return [
        Strain.from_index_amount((i, j), sign * STRAIN)
        for i, j in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
        for sign in (-1, 1)
    ]


def stress_under(atoms: Atoms, strain: Strain) -> Stress:
    """Strain the cell, let the atoms relax inside it, and return the second Piola-Kirchhoff stress in GPa."""
    deformation = strain.get_deformation_matrix()
    strained = atoms.copy()
    strained.set_cell(atoms.cell @ deformation.T, scale_atoms=True)
    strained.calc = EMT()
    if not BFGS(strained, logfile=None).run(fmax=FMAX, steps=MAX_STEPS):
        raise RejectedError("relaxation did not converge")
    cauchy = Stress(strained.get_stress(voigt=False) / GPa)
    return Stress(cauchy.piola_kirchoff_2(deformation))


def elastic_tensor(atoms: Atoms) -> ElasticTensor:
    """Fit the relaxed-ion elastic tensor of a relaxed crystal, in GPa."""
    applied = strains()
    stresses = [stress_under(atoms, strain) for strain in applied]
    relaxed = Stress(atoms.get_stress(voigt=False) / GPa)
    stiffness = ElasticTensor.from_independent_strains(applied, stresses, eq_stress=relaxed).voigt
    return ElasticTensor.from_voigt((stiffness + stiffness.T) / 2)


def lowest_stiffness(tensor: ElasticTensor) -> float:
    """Return the smallest eigenvalue of the stiffness, GPa; in Kelvin's notation the axes do not matter."""
    kelvin = np.repeat([1, 2**0.5], 3)
    return float(np.linalg.eigvalsh(tensor.voigt * np.outer(kelvin, kelvin)).min())


def check_minimum(atoms: Atoms, tensor: ElasticTensor) -> None:
    """Refuse saddle points and what is close to one."""
    stiffness = lowest_stiffness(tensor)
    if stiffness <= 0:
        raise RejectedError("elastically unstable: an eigenvalue of C is not positive")
    if stiffness < MIN_STIFFNESS:
        raise RejectedError(f"nearly unstable: an eigenvalue of C is below {MIN_STIFFNESS:g} GPa")
    if lowest_force_constant(atoms) <= 0:
        raise RejectedError("unstable against moving the atoms of one cell")


def compute(candidate: Candidate) -> dict[str, Any]:
    """Relax, strain and describe one crystal.

    Returns:
        The document that is stored (GPa, eV, Å, g/cm³).

    Raises:
        RejectedError: The crystal is not a minimum worth keeping.
    """
    atoms = start(candidate)
    relax(atoms)
    tensor = elastic_tensor(atoms)
    check_minimum(atoms, tensor)
    return document(candidate, atoms, tensor)


def document(candidate: Candidate, atoms: Atoms, tensor: ElasticTensor) -> dict[str, Any]:
    """Describe a crystal in the layout of a Materials Project export."""
    cell, fractions = np.round(atoms.cell[:], 8), np.round(atoms.get_scaled_positions(), 8) % 1
    crystal = Structure(cell, atoms.get_chemical_symbols(), fractions)
    composition = crystal.composition
    return {
        "material_id": candidate.material_id,
        "formula_pretty": composition.reduced_formula,
        "chemsys": composition.chemical_system,
        "nsites": len(crystal),
        "volume": round(float(crystal.volume), 6),
        "density": round(float(crystal.density), 6),
        "structure": rounded(crystal.as_dict(), 8),
        "bulk_modulus": averages(tensor, "k"),
        "shear_modulus": averages(tensor, "g"),
        "universal_anisotropy": round(float(tensor.universal_anisotropy), 4),
        "prototype": candidate.prototype,
        "energy_per_atom": round(float(atoms.get_potential_energy()) / len(atoms), 6),
        "theoretical": True,
        "method": "ASE EMT (effective medium theory), not DFT and not experiment",
    }


def averages(tensor: ElasticTensor, modulus: str) -> dict[str, float]:
    return {kind: round(float(getattr(tensor, f"{modulus}_{kind}")), 3) for kind in ("voigt", "reuss", "vrh")}


def rounded(value: Any, digits: int) -> Any:
    """Round every float inside nested lists and dictionaries; minus zero becomes zero."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [rounded(item, digits) for item in value]
    return round(float(value), digits) + 0.0 if isinstance(value, float) else value


def attempt(candidate: Candidate) -> dict[str, Any] | str:
    """Return the document of a crystal, or why there is none."""
    try:
        return compute(candidate)
    except RejectedError as reason:
        return str(reason)


def without_duplicates(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the first of the crystals that relaxed into one another."""
    matcher = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.5, scale=False)
    kept: list[dict[str, Any]] = []
    for new in documents:
        crystal = Structure.from_dict(new["structure"])
        rivals = [old for old in kept if may_be_same(old, new)]
        if not any(matcher.fit(Structure.from_dict(old["structure"]), crystal) for old in rivals):
            kept.append(new)
    return kept


def may_be_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Compare formula and energy, which spares most of the costly comparisons of structures."""
    close = abs(one["energy_per_atom"] - other["energy_per_atom"]) < 1e-4
    return close and one["formula_pretty"] == other["formula_pretty"]


def report(tried: list[Candidate], outcomes: list[dict[str, Any] | str], kept: list[dict[str, Any]]) -> str:
    """Say how many crystals were tried, kept and dropped, why, and from which prototypes."""
    reasons = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
    reasons["relaxed into another crystal of the set"] = len(tried) - reasons.total() - len(kept)
    lines = [f"tried {len(tried)}, kept {len(kept)}, dropped {reasons.total()}:"]
    lines += [f"  {count:5d}  {reason}" for reason, count in reasons.most_common()]
    for name in ("bulk_modulus", "shear_modulus"):
        values = np.array([item[name]["vrh"] for item in kept])
        lines.append(f"{name}.vrh: {values.min():.1f} to {values.max():.1f} GPa, median {np.median(values):.1f}")
    left = Counter(item["prototype"] for item in kept)
    counts = Counter(candidate.prototype for candidate in tried)
    lines.append("kept of tried: " + ", ".join(f"{name} {left[name]}/{counts[name]}" for name in PROTOTYPES))
    return "\n".join(lines)


def write(documents: list[dict[str, Any]], path: Path) -> None:
    """Write the export under a temporary name and rename it; no time stamp, so the same bytes every time."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(gzip.compress(orjson.dumps(documents) + b"\n", mtime=0))
    temporary.replace(path)


def run(workers: int) -> tuple[list[dict[str, Any]], str]:
    """Compute all crystals and return the documents to store and the report."""
    # The matrices are tiny, threads get in each other's way. Fresh processes read this before numpy does.
    os.environ["OMP_NUM_THREADS"] = "1"
    tried = list(candidates())
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        outcomes = list(tqdm(pool.imap(attempt, tried), total=len(tried), unit="crystal"))
    kept = without_duplicates([outcome for outcome in outcomes if isinstance(outcome, dict)])
    return kept, report(tried, outcomes, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded elasticity data set with ASE's EMT potential.")
    beside = Path(__file__).with_name("elasticity-emt.json.gz")
    parser.add_argument("--output", type=Path, default=beside, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="processes, default: %(default)s")
    arguments = parser.parse_args()
    documents, summary = run(arguments.workers)
    write(documents, arguments.output)
    print(summary)


if __name__ == "__main__":
    main()
