"""Inputs of first-principles calculations: whole, readable, without anything that is licensed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Incar, Kpoints, Poscar

from cgnn.errors import DataError
from cgnn.screen.inputs import write_inputs

CARBIDE = Structure.from_spacegroup("F-43m", Lattice.cubic(4.36), ["Si", "C"], [[0, 0, 0], [0.25, 0.25, 0.25]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "001-mp-8062"
    write_inputs(CARBIDE, path, ["relax", "static", "elastic"], "SiC (mp-8062)")
    return path


@pytest.mark.filterwarnings("ignore")  # of pymatgen's readers
def test_every_folder_is_ready(folder: Path) -> None:
    places = [folder / "relax", folder / "static", *sorted((folder / "elastic").iterdir())]
    assert len(places) > 2
    for place in places:
        names = {path.name for path in place.iterdir()} - {"deformation.txt"}
        assert names == {"INCAR", "KPOINTS", "POSCAR", "POTCAR.spec"}
        cell = Poscar.from_file(str(place / "POSCAR"), check_for_potcar=False).structure
        assert len(cell) == 2  # the primitive cell
        assert Incar.from_file(str(place / "INCAR"))["ENCUT"] == 520
        assert Kpoints.from_file(str(place / "KPOINTS")).kpts
        assert (place / "POTCAR.spec").read_text().split() == cell.composition.chemical_system.split("-")[::-1]
    incars = {place.name: Incar.from_file(str(place / "INCAR")) for place in places}
    assert (incars["relax"]["ISIF"], incars["static"]["NSW"], incars["01"]["ISIF"]) == (3, 0, 2)
    assert not list(folder.rglob("POTCAR"))


@pytest.mark.filterwarnings("ignore")
def test_deformed_cells_are_the_relaxed_one_deformed(folder: Path) -> None:
    whole = Poscar.from_file(str(folder / "relax" / "POSCAR"), check_for_potcar=False).structure
    for place in (folder / "elastic").iterdir():
        gradient = np.loadtxt(place / "deformation.txt")
        cell = Poscar.from_file(str(place / "POSCAR"), check_for_potcar=False).structure
        np.testing.assert_allclose(cell.lattice.matrix, whole.lattice.matrix @ gradient.T, atol=1e-8)
        assert 1e-3 < np.abs(gradient - np.eye(3)).max() < 0.15  # shear strains of 0.06 count twice in the gradient


def test_the_readme_says_what_to_do(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert text.startswith("# SiC (mp-8062)")
    for words in (
        "relax/",
        "static/",
        "elastic/",
        "POTCAR.spec",
        f"{len(list((folder / 'elastic').iterdir()))} deformed",
    ):
        assert words in text


def test_an_element_without_a_potential_is_named(tmp_path: Path) -> None:
    odd = Structure(Lattice.cubic(3.0), ["Fm"], [[0, 0, 0]])
    with pytest.raises(DataError, match="no inputs for Fm"):
        write_inputs(odd, tmp_path / "odd", ["relax"], "odd")
