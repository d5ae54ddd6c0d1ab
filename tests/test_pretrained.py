"""Models that come with the package: there, small, described, and right about well-known crystals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pymatgen.core import Lattice, Structure
from test_benchmarks import RUN

import cgnn
from cgnn import Predictor
from cgnn.errors import CheckpointError
from cgnn.train.checkpoint import load_model
from cgnn.train.pretrained import PRETRAINED, model_file

FOLDER = Path(cgnn.__file__).parent / "pretrained"

DIAMOND = Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567), ["C"], [[0, 0, 0]])
SILICON = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.43), ["Si"], [[0, 0, 0]])
COPPER = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.61), ["Cu"], [[0, 0, 0]])
SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
MAGNESIA = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.21), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.mark.parametrize("name", PRETRAINED)
def test_is_found_by_name_and_has_a_card(name: str) -> None:
    file = model_file(name)
    assert file.parent == FOLDER
    info = Predictor.load(name, "cpu").info
    text = file.with_suffix(".md").read_text()
    for target in info.config.targets:
        assert f"| {target.name} | {target.unit} |" in text
    assert f"{info.summary['train']} crystals to learn from" in text


def test_are_a_few_megabytes_and_nothing_else() -> None:
    files = list(FOLDER.iterdir())
    assert {file.stem for file in files} == set(PRETRAINED.values())
    assert {file.suffix for file in files} == {".safetensors", ".md"}
    assert sum(file.stat().st_size for file in files) < 8e6


@pytest.mark.parametrize(
    ("crystal", "bulk", "shear"),
    [(DIAMOND, 443, 535), (SILICON, 98, 66.5), (COPPER, 137, 48), (MAGNESIA, 155, 130)],
    ids=["diamond", "silicon", "copper", "magnesia"],
)
def test_moduli_of_well_known_crystals(crystal: Structure, bulk: float, shear: float) -> None:
    """Measured values in GPa (Simmons and Wang, 1971; diamond: McSkimin and Andreatch, 1972), within a quarter."""
    found = Predictor.load("elasticity", "cpu").predict_structure(crystal)
    assert found["bulk_modulus"] == pytest.approx(bulk, rel=0.25)
    assert found["shear_modulus"] == pytest.approx(shear, rel=0.25)
    assert 0 < found["bulk_modulus_lower"] < found["bulk_modulus"] < found["bulk_modulus_upper"]


@pytest.mark.parametrize(
    ("crystal", "energy", "gap"),
    [(SALT, -2.1, 5.0), (MAGNESIA, -3.0, 4.5), (COPPER, 0.0, 0.0)],
    ids=["salt", "magnesia", "copper"],
)
def test_energies_of_well_known_crystals(crystal: Structure, energy: float, gap: float) -> None:
    """Formation energies (eV/atom) and PBE gaps (eV) of the Materials Project, within 0.2 and 1.0."""
    found = Predictor.load("formation_energy", "cpu").predict_structure(crystal)
    assert found["formation_energy"] == pytest.approx(energy, abs=0.2)
    assert found["band_gap"] == pytest.approx(gap, abs=1.0)
    assert 0 <= found["band_gap_lower"] <= found["band_gap"] <= found["band_gap_upper"]


def test_a_misspelt_name_is_an_error_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"elasticty: no model found.*did you mean elasticity"):
        Predictor.load("elasticty")


def test_what_lies_on_the_disk_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elasticity").mkdir()
    with pytest.raises(CheckpointError, match="elasticity: no model found"):
        Predictor.load("elasticity")


def test_as_it_was_made(small_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/pretrained.py`: the members go on from themselves, are put together, and leave no paths behind."""
    monkeypatch.syspath_prepend(str(RUN.parent))
    import pretrained

    data = Path(small_settings["data"]["path"])
    settings = {**small_settings, "ensemble": {"models": [{}, {"depth": 3, "remedy": "layer_scale"}]}}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.yaml").write_text(yaml.safe_dump(settings))
    for name, value in {"ROOT": tmp_path, "RUNS": tmp_path, "FOLDER": tmp_path, "DATA": data.parent}.items():
        monkeypatch.setattr(pretrained, name, value)
    monkeypatch.setattr(pretrained, "MODELS", {"small": (data.name, 2)})
    monkeypatch.setattr(pretrained, "CYCLES", {"small": (2, 1)})
    monkeypatch.setattr(pretrained, "CYCLE", {"epochs": 1, "learning_rate": 1e-3})
    run = pretrained.trained("small")
    pretrained.store("small", run)
    members, info = load_model(tmp_path / "small.safetensors")
    assert [member.config.depth for member in members] == [2, 3]
    assert info.summary["epochs"] == [1, 1]
    assert str(tmp_path) not in (tmp_path / "small.safetensors").read_bytes().decode(errors="replace")
    for member, (network, cycles) in enumerate(zip(members, (2, 1), strict=True)):
        chain = [run.parent / "members" / f"{member}{'-again' * cycle}" for cycle in range(cycles + 1)]
        found = [load_model(model_file(folder)) for folder in chain]
        assert [one.info.config.train.epochs for one in found] == [3, *[1] * cycles]
        assert [one.info.config.train.seed for one in found] == list(range(cycles + 1))
        assert found[cycles].info.config.transfer.init_from == str(chain[cycles - 1])
        assert all(map(torch.equal, network.parameters(), found[cycles].members[0].parameters()))
    monkeypatch.setattr(pretrained, "combine", None)
    assert pretrained.trained("small") == run  # a finished one is left as it is
