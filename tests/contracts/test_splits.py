"""Every entry of `SPLITS` meets one contract."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from cgnn.config import SplitConfig
from cgnn.data.split import (
    SPLITS,
    CrystalSummary,
    Split,
    chemical_system,
    duplicate_groups,
    reduced_formula,
    report,
    split,
    stoichiometry,
)
from cgnn.files import write_json

KEYS = {
    "composition": reduced_formula,
    "chemical_system": chemical_system,
    "stoichiometry": stoichiometry,
    "element": lambda crystal: str("O" in crystal.composition),
    "prototype": lambda crystal: crystal.prototype,
}
SHARES = ["random", "composition", "chemical_system", "stoichiometry", "prototype", "extrapolation"]


def make(number: int = 240) -> list[CrystalSummary]:
    draw = random.Random(5)
    found = []
    for index in range(number):
        elements = draw.sample(["Al", "Co", "Cu", "Fe", "Mg", "Ni", "O", "Ti"], draw.randint(1, 4))
        composition = {element: draw.randint(1, 4) for element in elements}
        shells = (draw.uniform(2, 3), draw.uniform(3, 4))
        volume, kind = draw.uniform(8, 20), f"kind-{draw.randint(0, 90)}"
        known = {"prototype": kind, "value": draw.uniform(1, 300) if index % 9 else None}
        found.append(CrystalSummary(f"id-{index}", composition, volume, shells, **known))
        if index % 4 == 0:  # the same crystal again, as a supercell
            doubled = {element: 2 * count for element, count in composition.items()}
            found.append(CrystalSummary(f"twin-{index}", doubled, volume, shells, **known))
    return found


CRYSTALS = make()


@pytest.fixture(params=sorted(SPLITS))
def config(request, tmp_path) -> SplitConfig:
    groups = sorted(duplicate_groups(CRYSTALS))
    parts = {"train": groups[:150], "val": groups[150:180], "test": groups[180:]}
    ids = {part: [name for group in members for name in group] for part, members in parts.items()}
    write_json(tmp_path / "ids.json", ids)
    of_method = {"element": "O", "file": str(tmp_path / "ids.json"), "fold": 1, "target": "k", "column": "part"}
    return SplitConfig(method=request.param, val=0.15, test=0.25, seed=3, **of_method)


@pytest.fixture
def crystals(config) -> list[CrystalSummary]:
    if config.method != "column":
        return CRYSTALS
    part_of = {name: part for part, names in orjson.loads(Path(config.file).read_bytes()).items() for name in names}
    return [replace(crystal, value=part_of[crystal.material_id]) for crystal in CRYSTALS]


def test_parts_are_a_partition(config, crystals):
    found = split(config, crystals)
    names = [*found.train, *found.val, *found.test]
    assert sorted(names) == sorted(crystal.material_id for crystal in crystals)
    assert found.train
    assert found.val
    assert found.test
    assert (found.method, found.seed, found.left_out) == (config.method, 3, 0)


def test_order_does_not_matter(config, crystals):
    shuffled = random.Random(0).sample(crystals, len(crystals))
    assert split(config, shuffled) == split(config, crystals)


def test_groups_are_not_parted(config, crystals):
    found = split(config, crystals)
    part = {name: part for part in ("train", "val", "test") for name in getattr(found, part)}
    assert all(len({part[name] for name in group}) == 1 for group in duplicate_groups(crystals))
    if key := KEYS.get(config.method):
        kept_out = {key(crystal) for crystal in crystals if part[crystal.material_id] == "test"}
        assert not any(key(c) in kept_out for c in crystals if part[c.material_id] != "test")


def test_report_finds_no_leak(config, crystals):
    found = split(config, crystals)
    said = report(found, crystals)
    assert sum(said["counts"].values()) == len(crystals)
    assert said["test"]["duplicate_in_train"] == said["val"]["duplicate_in_train"] == 0
    if config.method in ("composition", "chemical_system", "stoichiometry"):
        assert said["test"]["formula_in_train"] == 0
    assert (said["test"]["prototype_in_train"] == 0) == (config.method == "prototype")


def test_saved_and_loaded(config, crystals, tmp_path):
    found = split(config, crystals)
    found.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == found


@pytest.mark.parametrize("method", SHARES)
def test_shares_are_met(method):
    found = split(SplitConfig(method=method, val=0.15, test=0.25, target="k"), CRYSTALS)
    assert len(found.val) / len(CRYSTALS) == pytest.approx(0.15, abs=0.01)
    assert len(found.test) / len(CRYSTALS) == pytest.approx(0.25, abs=0.01)


def test_the_hash_seed_of_python_does_not_matter():
    """The same ids in another process, whatever order its sets have."""
    code = (
        "from cgnn.config import SplitConfig; from cgnn.data.split import *;"
        "data = [CrystalSummary(f'm{i}', {'Fe': 1 + i % 7, 'O': 2}, 10.0 + i, (2.0,)) for i in range(60)];"
        "print(split(SplitConfig(method='{m}', test=0.2, element='O'), data))"
    )
    for method in ("random", "composition", "kfold"):
        command = [sys.executable, "-c", code.replace("{m}", method)]
        printed = {
            subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
            for seed in ("0", "1")
        }
        assert len(printed) == 1
