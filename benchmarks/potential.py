"""Bulk moduli of small crystals by an interatomic potential: something to learn from before a few measured ones.

python -m venv runs/potential && runs/potential/bin/pip install -c constraints.txt sevenn pyarrow
runs/potential/bin/python benchmarks/potential.py sevenn.calculator:SevenNetCalculator 7net-0

Any calculator of ASE will do: its class, and what it is called with. Potentials bring much with them, hence an
environment of their own, and nothing of this project is imported here. Each crystal is one line of
``benchmarks/studies/potential.csv``, with an empty value where the potential failed; what is there already is not
computed again. Two calls of the potential a crystal, a seventh of a second with this one on a thread.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import warnings
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.units import GPa

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "formation_energy.parquet"
STRAIN = 0.005
"""Of each axis, to both sides."""

_calculator: Any = None


def bulk_modulus(atoms: Atoms) -> float:
    r"""Return the bulk modulus of a crystal as it stands, whose atoms follow the cell, GPa.

    .. math:: K = \frac{p(-\epsilon) - p(\epsilon)}{6 \epsilon}

    with the pressure p at strains :math:`\pm\epsilon` of all axes. Atoms that would move otherwise than the cell make a
    crystal softer than this.

    Args:
        atoms: The crystal, with a calculator.
    """
    pressures = []
    for strain in (-STRAIN, STRAIN):
        strained = atoms.copy()
        strained.calc = atoms.calc
        strained.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        pressures.append(-strained.get_stress()[:3].mean() / GPa)
    return float((pressures[0] - pressures[1]) / (6 * STRAIN))


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


def main() -> None:
    """Compute what is not in the output yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calculator", help="MODULE:CLASS of an ASE calculator, called with model and device")
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--part", default="train", help="entry of the column split")
    parser.add_argument("--atoms", type=int, default=12, help="most atoms of a cell")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "studies" / "potential.csv")
    options = parser.parse_args()
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
