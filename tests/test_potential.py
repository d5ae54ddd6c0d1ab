"""Bulk moduli by a potential: the formula, and the script from end to end with one that is known."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from ase.units import GPa

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "potential.py"
LATTICE = 3.5898
"""Of copper, in EMT, Å: no stress."""


def test_bulk_modulus_is_the_curvature_of_the_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import potential

    atoms = bulk("Cu", a=LATTICE)
    atoms.calc = EMT()
    lengths = LATTICE * np.array([0.998, 1.0, 1.002])
    energies = []
    for length in lengths:
        atoms.set_cell(bulk("Cu", a=length).cell, scale_atoms=True)
        energies.append(atoms.get_potential_energy())
    slopes = np.diff(energies) / np.diff(lengths**3 / 4)
    curvature = np.diff(slopes)[0] / ((lengths[2] ** 3 - lengths[0] ** 3) / 8)
    atoms.set_cell(bulk("Cu", a=LATTICE).cell, scale_atoms=True)
    assert potential.bulk_modulus(atoms) == pytest.approx(LATTICE**3 / 4 * curvature / GPa, rel=0.01)


def test_atoms_settle_under_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers Al, Al, Au, where the aluminium may move along one axis: as by relaxing the atoms at either strain."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import potential

    cell = np.array([[0.5, 0.5, 0.0], [0.5, -0.5, 0.0], [1.5, 0.0, 1.5]]) * 4.05
    atoms = Atoms("Al2Au", scaled_positions=[[0, 0, 0], [0, 0, 1 / 3], [0, 0, 2 / 3]], cell=cell, pbc=True)

    def settled(atoms: Atoms) -> Atoms:
        atoms.calc = EMT()
        BFGS(atoms, logfile=None).run(fmax=1e-4)
        return atoms

    settled(atoms)
    pressures = []
    for strain in (-potential.STRAIN, potential.STRAIN):
        strained = atoms.copy()
        strained.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        pressures.append(-settled(strained).get_stress()[:3].mean() / GPa)
    by_relaxing = (pressures[0] - pressures[1]) / (6 * potential.STRAIN)
    assert potential.bulk_modulus(atoms) == pytest.approx(by_relaxing, rel=2e-3)
    monkeypatch.setattr(potential, "_relaxation", lambda atoms, slope: 0.0)
    assert potential.bulk_modulus(atoms) > 1.05 * by_relaxing


def test_script_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(
        "from ase.calculators.emt import EMT\n"
        "class Toy(EMT):\n"
        "    def __init__(self, model, device):\n"
        "        assert (model, device) == ('best', 'cpu')\n"
        "        super().__init__()\n"
    )
    rows = [
        {"immutable_id": symbol, "split": split, "nsites": size, "species_at_sites": [symbol] * size}
        | {"lattice_vectors": (bulk("Cu", a=LATTICE).cell * [size, 1, 1]).tolist()}
        | {"cartesian_site_positions": [[length * size, 0.0, 0.0] for length in range(size)]}
        for symbol, split, size in [("Cu", "train", 1), ("Fe", "train", 1), ("Ni", "val", 1), ("Pd", "train", 3)]
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "crystals.parquet")
    output = tmp_path / "found.csv"
    command = [sys.executable, str(SCRIPT), "toy:Toy", "best", "--data", str(tmp_path / "crystals.parquet")]
    command += ["--atoms", "2", "--workers", "1", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "Fe: " in done.stderr  # EMT knows no iron
    found = pd.read_csv(output).set_index("material_id")["bulk_modulus"]
    assert sorted(found.index) == ["Cu", "Fe"]
    assert found["Cu"] == pytest.approx(134.5, abs=2)
    assert np.isnan(found["Fe"])
    text = output.read_text()
    subprocess.run(command, env=environment, check=True)
    assert output.read_text() == text


def test_moduli_are_compared_by_id(tmp_path: Path) -> None:
    """Off by a tenth and by a fifth of a decade; a failed one and one that is not in both do not count."""
    moduli = {"a": 100.0, "b": 10.0, "c": 50.0, "d": 70.0}
    documents = [{"material_id": name, "bulk_modulus": {"vrh": value}} for name, value in moduli.items()]
    export, found = tmp_path / "export.json.gz", tmp_path / "found.csv"
    export.write_bytes(gzip.compress(json.dumps(documents).encode()))
    found.write_text(f"material_id,bulk_modulus\na,{100 * 10**0.1}\nb,{10 * 10**-0.2}\nc,\ne,80\n")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--against", export, "--output", found], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2 crystals: MAE of log10 K 0.1500, median 0.1500"
