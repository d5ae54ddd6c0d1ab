"""Bulk moduli of small crystals by an interatomic potential: something to learn from before a few of quantum mechanics.

python -m venv runs/potential && runs/potential/bin/pip install -c constraints.txt torch sevenn pyarrow
runs/potential/bin/python benchmarks/potential.py sevenn.calculator:SevenNetCalculator 7net-0
runs/potential/bin/python benchmarks/potential.py --against ../shared/data/elasticity.json.gz  # how good they are

Any calculator of ASE will do: its class, and the name of the model. Potentials bring much with them, hence an
environment of their own, and nothing of this project is imported here. Each crystal is one line of
``benchmarks/studies/potential.csv``, with an empty value where the potential failed; what is there already is not
computed again. A fifth of a second a crystal with this potential on one thread.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ase import Atoms
from ase.units import GPa
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "formation_energy.parquet"
STRAIN = 0.005
STEP = 0.02
"""Length of the vector of displacements by which a curvature is measured, Å."""
ITERATIONS = 10
"""Of the conjugate gradients at most; crystals of high symmetry need none, as their atoms have nowhere to go."""
SETTLED = 0.05
"""Share of the forces that may be left."""
NOISE = 0.05
"""Forces by strain that count as none, eV/Å."""

Array = NDArray[np.float64]

_calculator: Any = None


def bulk_modulus(atoms: Atoms) -> float:
    r"""Return the bulk modulus of a crystal as it stands, GPa: axes alike, atoms as they settle.

    .. math:: K = \frac{p(-\epsilon) - p(\epsilon)}{6 \epsilon} - \frac{\Lambda^T H^{-1} \Lambda}{9 V}

    with the pressure p at strains :math:`\pm\epsilon` of all axes, where atoms follow the cell; the forces
    :math:`\Lambda` by strain that this gives; and the force constants H. The second term is what a crystal is softer by
    as its atoms need not follow, molecular ones by an order of magnitude. Its linear equations are solved by conjugate
    gradients, for which H times a vector is a difference of forces.

    Args:
        atoms: The crystal, with a calculator.
    """
    wide, narrow = (_evaluate(atoms, 1 + strain) for strain in (STRAIN, -STRAIN))
    clamped = (narrow.pressure - wide.pressure) / (6 * STRAIN)
    softer = _relaxation(atoms, (wide.forces - narrow.forces) / (2 * STRAIN)) / (9 * atoms.get_volume()) / GPa
    return float(clamped - softer)


class Evaluated(NamedTuple):
    """Pressure, GPa, and forces (N, 3), eV/Å, of a crystal."""

    pressure: float
    forces: Array


def _evaluate(atoms: Atoms, factor: float, move: Array | float = 0.0) -> Evaluated:
    changed = Atoms(atoms.numbers, positions=(atoms.positions + move) * factor, cell=atoms.cell * factor, pbc=True)
    changed.calc = atoms.calc
    return Evaluated(-changed.get_stress()[:3].mean() / GPa, changed.get_forces())


def _relaxation(atoms: Atoms, slope: Array) -> float:
    r"""Return :math:`\Lambda^T H^{-1} \Lambda`, eV, as far as force constants are positive."""
    left, direction, found = slope, slope, 0.0
    square = first = float((slope**2).sum())
    if np.sqrt(first / len(atoms)) < NOISE:
        return 0.0
    rest = _evaluate(atoms, 1.0).forces
    for _ in range(ITERATIONS):
        step = STEP / np.linalg.norm(direction)
        stiff = (rest - _evaluate(atoms, 1.0, step * direction).forces) / step
        curvature = float((direction * stiff).sum())
        if curvature <= 0:
            break
        found += square**2 / curvature
        left = left - square / curvature * stiff
        square, before = float((left**2).sum()), square
        if square < SETTLED**2 * first:
            break
        direction = left + square / before * direction
    return found


def crystals(path: Path, part: str, most: int) -> Iterator[tuple[str, Atoms]]:
    """Yield id and crystal of those of a part with no more than so many atoms, in an order drawn at random."""
    table = pd.read_parquet(path)
    table = table[(table["split"] == part) & (table["nsites"] <= most)].sample(frac=1.0, random_state=0)
    for row in table.itertuples():
        positions, cell = np.stack(row.cartesian_site_positions), np.stack(row.lattice_vectors)
        yield row.immutable_id, Atoms(list(row.species_at_sites), positions=positions, cell=cell, pbc=True)


def _start(name: str, model: str) -> None:
    global _calculator
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    module, _, kind = name.partition(":")
    _calculator = getattr(importlib.import_module(module), kind)(model, device="cpu")


def _compute(job: tuple[str, Atoms]) -> str:
    name, atoms = job
    atoms.calc = _calculator
    try:
        return f"{name},{bulk_modulus(atoms):.1f}"
    except Exception as error:  # whatever a potential does with a strange crystal, the others go on
        print(f"{name}: {error!r}", file=sys.stderr)
        return f"{name},"


def against(path: Path, found: pd.Series[float]) -> str:
    """Return how far bulk moduli are from those of an export of the Materials Project, crystals joined by id."""
    documents = json.loads(gzip.decompress(path.read_bytes()))
    known = {document["material_id"]: document["bulk_modulus"]["vrh"] for document in documents}
    both = pd.DataFrame({"known": known, "found": found}).dropna()
    both = both[(both > 1).all(axis=1)]
    errors = np.log10(both["known"] / both["found"]).abs()
    return f"{len(both)} crystals: MAE of log10 K {errors.mean():.4f}, median {errors.median():.4f}"


def main() -> None:
    """Compute what is not in the output yet, or compare what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calculator", nargs="?", help="MODULE:CLASS of an ASE calculator, called with model and device")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--part", default="train", help="entry of the column split")
    parser.add_argument("--atoms", type=int, default=8, help="most atoms of a cell")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "studies" / "potential.csv")
    parser.add_argument("--against", type=Path, help="compare with this export of moduli instead (JSON, gzip)")
    options = parser.parse_args()
    if options.against:
        print(against(options.against, pd.read_csv(options.output, index_col="material_id")["bulk_modulus"]))
        return
    if not options.model:
        parser.error("give a calculator and the name of its model")
    if not options.output.exists():
        options.output.write_text("material_id,bulk_modulus\n")
    done = set(pd.read_csv(options.output)["material_id"])
    jobs = (job for job in crystals(options.data, options.part, options.atoms) if job[0] not in done)
    os.environ["OMP_NUM_THREADS"] = "1"  # fresh processes read it before they load torch
    started = time.monotonic()
    with (
        get_context("spawn").Pool(options.workers, _start, (options.calculator, options.model)) as pool,
        options.output.open("a") as lines,
    ):
        for line in pool.imap(_compute, jobs):
            print(line, file=lines, flush=True)
            if time.monotonic() - started > options.minutes * 60:
                break


if __name__ == "__main__":
    main()
