"""The embedded elasticity data: what the file holds, and that the script beside it still makes the same numbers."""

import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from pymatgen.core import Structure

DATA = Path(__file__).parents[2] / "data"
KEYS = {
    "material_id",
    "formula_pretty",
    "chemsys",
    "nsites",
    "volume",
    "density",
    "structure",
    "bulk_modulus",
    "shear_modulus",
    "universal_anisotropy",
    "prototype",
    "energy_per_atom",
    "theoretical",
    "method",
}


@pytest.fixture(scope="module")
def documents():
    return orjson.loads(gzip.decompress((DATA / "elasticity-emt.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def by_id(documents):
    return {item["material_id"]: item for item in documents}


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("ase")
    spec = importlib.util.spec_from_file_location("make_elasticity_emt", DATA / "make_elasticity_emt.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def candidates(script):
    return {candidate.material_id: candidate for candidate in script.candidates()}


def test_every_document_has_the_same_keys(documents):
    assert all(set(item) == KEYS for item in documents)


def test_ids_are_unique_and_known_to_the_script(documents, by_id, candidates):
    assert len(by_id) == len(documents) >= 400
    assert set(by_id) <= set(candidates)


@pytest.mark.parametrize("name", ["bulk_modulus", "shear_modulus"])
def test_moduli_are_ordered_and_above_1_gpa(documents, name):
    values = np.array([[item[name][kind] for kind in ("reuss", "vrh", "voigt")] for item in documents])
    assert values.min() > 1
    # Three decimals are stored.
    assert (np.diff(values, axis=1) > -0.0011).all()
    np.testing.assert_allclose(values[:, 1], (values[:, 0] + values[:, 2]) / 2, atol=0.0011)


def test_structures_are_ordered_and_agree_with_their_columns(documents):
    for item in documents:
        crystal = Structure.from_dict(item["structure"])
        assert crystal.is_ordered
        assert crystal.is_valid(tol=2.0)
        assert len(crystal) == item["nsites"] <= 9
        assert crystal.composition.reduced_formula == item["formula_pretty"]
        assert crystal.composition.chemical_system == item["chemsys"]
        assert crystal.lattice.volume == pytest.approx(item["volume"], rel=1e-6)
        assert np.linalg.det(crystal.lattice.matrix) > 0


def test_the_readme_gives_the_number_of_crystals(documents):
    assert f"kept {len(documents)}, dropped" in (DATA / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("material_id", ["emt-Cu-fcc", "emt-Cu3Au-L1_2", "emt-AlNi3-D0_19", "emt-NiPdPt-fcc111-ABC"])
def test_the_script_makes_the_stored_numbers(script, candidates, by_id, material_id):
    # Regenerate all of them with: python data/make_elasticity_emt.py
    made, stored = script.compute(candidates[material_id]), by_id[material_id]
    for name in ("bulk_modulus", "shear_modulus"):
        assert made[name] == pytest.approx(stored[name], abs=0.1)
    assert made["volume"] == pytest.approx(stored["volume"], rel=1e-4)
    assert made["energy_per_atom"] == pytest.approx(stored["energy_per_atom"], abs=1e-5)


def test_copper_agrees_with_its_energy_volume_curve(script, candidates, by_id):
    # K = V d2E/dV2, from energies alone, against the stored finite-strain number.
    atoms = script.start(candidates["emt-Cu-fcc"])
    script.relax(atoms)
    cell, volume, step = atoms.cell.copy(), atoms.get_volume(), 0.003
    energies = []
    for factor in (1 - step, 1, 1 + step):
        atoms.set_cell(cell * factor ** (1 / 3), scale_atoms=True)
        energies.append(atoms.get_potential_energy())
    curvature = (energies[0] - 2 * energies[1] + energies[2]) / (step * volume) ** 2
    assert by_id["emt-Cu-fcc"]["bulk_modulus"]["vrh"] == pytest.approx(volume * curvature * 160.21766, abs=0.1)


def test_silver_agrees_with_the_tutorial_of_ase(by_id):
    # ASE's tutorial "Equation of state (EOS)" prints B = 100.142 GPa for fcc silver with EMT.
    assert by_id["emt-Ag-fcc"]["bulk_modulus"]["vrh"] == pytest.approx(100.142, abs=0.1)


def test_a_saddle_point_is_refused(script, candidates):
    with pytest.raises(script.RejectedError, match="an eigenvalue of C is not positive"):
        script.compute(candidates["emt-Cu-bcc"])


def test_moduli_do_not_depend_on_the_axes(script, candidates):
    atoms = script.start(candidates["emt-CuAu-L1_0"])
    script.relax(atoms)
    turned = atoms.copy()
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    turned.calc = script.EMT()
    one, other = script.elastic_tensor(atoms), script.elastic_tensor(turned)
    assert other.g_vrh == pytest.approx(one.g_vrh, rel=1e-3)
    assert script.lowest_stiffness(other) == pytest.approx(script.lowest_stiffness(one), rel=1e-3)


def test_duplicates_are_kept_once(script, documents):
    assert script.without_duplicates([documents[0], documents[1], documents[0]]) == documents[:2]


def test_writing_twice_gives_the_same_bytes(script, documents, tmp_path):
    for name in ("one.json.gz", "two.json.gz"):
        script.write(documents[:20], tmp_path / name)
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json.gz", "two.json.gz"]
