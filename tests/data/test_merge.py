"""Several files as one: labels joined by id and crystal, other crystals under the same id kept apart but together."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgnn.config import DataConfig, GraphConfig, SplitConfig, build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import build as build_file
from cgnn.data.prepare import prepare
from cgnn.data.split import SPLITS, split
from cgnn.data.summary import CrystalSummary
from cgnn.errors import ConfigError, DataError
from cgnn.targets import Target
from cgnn.train import train
from cgnn.train.checkpoint import load_model

K = Target(name="bulk_modulus", column="bulk_modulus.vrh", unit="GPa", transform="log10")
GAP = Target(name="gap", unit="eV")


def scaled(document: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return a document whose cell is longer by a factor."""
    document = copy.deepcopy(document)
    lattice = np.array(document["structure"]["lattice"]["matrix"]) * factor
    document["structure"]["lattice"] = {"matrix": lattice.tolist()}
    for site in document["structure"]["sites"]:
        site.pop("xyz", None)
    return document


@pytest.fixture
def files(tmp_path: Path, embedded_documents: list[dict[str, Any]]) -> tuple[Path, Path]:
    """Ten crystals with moduli and ten with gaps: five of the same id, of which one is 3 % longer, one 0.01 %."""
    documents = embedded_documents[::30][:15]
    first, second = tmp_path / "moduli.json", tmp_path / "gaps.jsonl"
    first.write_text(json.dumps(documents[:10]))
    others = []
    for place, document in enumerate(documents[5:]):
        kept = {key: document[key] for key in ("material_id", "structure", "nsites") if key in document}
        others.append({**kept, "gap": 0.5 + place})
    others[0], others[1] = scaled(others[0], 1.03), scaled(others[1], 1.0001)
    second.write_text("".join(json.dumps(document) + "\n" for document in others))
    return first, second


def joined(tmp_path: Path, *paths: Path, targets: tuple[Target, ...] = (K, GAP)) -> CrystalDataset:
    data = DataConfig(path=tuple(map(str, paths)), cache=str(tmp_path / "cache"))
    return CrystalDataset(prepare(data, GraphConfig()), targets)


def labels(dataset: CrystalDataset, target: Target) -> dict[str, float]:
    return dict(zip(dataset.ids, dataset.label(target).tolist(), strict=True))


def test_labels_are_joined(tmp_path: Path, files: tuple[Path, Path], embedded_documents: list[dict[str, Any]]) -> None:
    dataset = joined(tmp_path, *files)
    documents = embedded_documents[::30][:15]
    ids = [document["material_id"] for document in documents]
    other = f"{ids[5]}@gaps"
    assert dataset.ids == [*ids[:10], other, *ids[10:]]
    moduli, gaps = labels(dataset, K), labels(dataset, GAP)
    for place, (name, document) in enumerate(zip(ids, documents, strict=True)):
        assert moduli[name] == document["bulk_modulus"]["vrh"] if place < 10 else np.isnan(moduli[name])
        assert gaps[name] == place - 4.5 if place > 5 else np.isnan(gaps[name])
    assert np.isnan(moduli[other])
    assert gaps[other] == 0.5
    sources = dict(zip(dataset.store.ids(), dataset.store.sources(), strict=True))
    assert sources[ids[6]].startswith("moduli.json:")
    assert "; gaps.jsonl:" in sources[ids[6]]


def test_graphs_are_those_of_the_first_file(tmp_path: Path, files: tuple[Path, Path]) -> None:
    store = joined(tmp_path, *files).store
    each = [prepare(DataConfig(path=str(path), cache=str(tmp_path / "cache")), GraphConfig()) for path in files]
    rows = [dict(zip(part.ids(), range(len(part)), strict=True)) for part in each]
    for row, name in enumerate(store.ids()):
        bare = name.partition("@")[0]
        place = 0 if bare == name and bare in rows[0] else 1
        expected = each[place].graph(rows[place][bare])
        found = store.graph(row)
        assert all(np.array_equal(found[field], values) for field, values in expected.items())


def test_first_file_has_the_word(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """A column that both have keeps the first one's value; null and absent are filled in."""
    first, second = (joined(tmp_path, *order, targets=(GAP,)) for order in (files, files[::-1]))
    assert {name for name in second.ids if "@" in name} == set()
    assert len(first) == len(second) == 10
    documents = json.loads(files[0].read_text())
    documents[7]["gap"], documents[8]["gap"] = 99.0, None
    files[0].write_text(json.dumps(documents))
    found = labels(joined(tmp_path, *files), GAP)
    assert found[documents[7]["material_id"]] == 99.0
    assert found[documents[8]["material_id"]] == 3.5


def test_found_again_and_made_anew(tmp_path: Path, files: tuple[Path, Path]) -> None:
    store = joined(tmp_path, *files).store
    written = store.path.stat().st_mtime_ns
    again = joined(tmp_path, *files).store
    assert (again.path, again.path.stat().st_mtime_ns) == (store.path, written)
    assert joined(tmp_path, *files[::-1]).store.key != store.key
    files[1].write_text(files[1].read_text().replace('"gap": 1.5', '"gap": 1.75'))
    assert joined(tmp_path, *files).store.key != store.key


def test_prepared_files_join_likewise(tmp_path: Path, files: tuple[Path, Path]) -> None:
    expected = joined(tmp_path, *files)
    places = []
    for path in files:
        places.append(path.with_suffix(".graphs"))
        build_file(places[-1], DataConfig(path=str(path)), GraphConfig())
    found = joined(tmp_path, *places)
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.label(GAP), expected.label(GAP))


def test_three_files_and_two_of_one_name(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """The longer crystal of the second file is that of the third: they share a record and its name."""
    third = tmp_path / "other" / "gaps.jsonl"
    third.parent.mkdir()
    document = json.loads(files[1].read_text().splitlines()[0])
    third.write_text(json.dumps({**document, "gap": None, "hardness": 7.0}) + "\n")
    dataset = joined(tmp_path, *files, third, targets=(K, GAP, Target(name="hardness")))
    name = f"{document['material_id']}@gaps-2"
    assert len(dataset) == 16
    assert labels(dataset, GAP)[name] == 0.5
    assert labels(dataset, Target(name="hardness"))[name] == 7.0


def test_values_of_atoms_need_the_same_atoms(tmp_path: Path, files: tuple[Path, Path]) -> None:
    documents = json.loads(files[0].read_text())[:3]
    charge = Target(name="charge", level="atom")
    with_atoms = []
    for document in documents:
        sites = document["structure"]["sites"]
        with_atoms.append({**document, "charge": [0.1 * (n + 1) for n in range(len(sites))]})
    shuffled = with_atoms[1]["structure"]["sites"]
    assert len({site["species"][0]["element"] for site in shuffled}) > 1
    with_atoms[1] = copy.deepcopy(with_atoms[1])
    with_atoms[1]["structure"]["sites"].reverse()
    second = tmp_path / "charges.json"
    second.write_text(json.dumps(with_atoms))
    dataset = joined(tmp_path, files[0], second, targets=(K, charge))
    ids = [document["material_id"] for document in documents]
    assert [name for name in dataset.ids if "@" in name] == [f"{ids[1]}@charges"]
    counts = dataset.sizes()[0]
    known = np.isfinite(dataset.label(charge))
    has = {
        name: bool(part.all()) for name, part in zip(dataset.ids, np.split(known, np.cumsum(counts)[:-1]), strict=True)
    }
    assert [has[name] for name in (*ids, f"{ids[1]}@charges")] == [True, False, True, True]


def test_what_each_file_set_aside_is_kept(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with files[1].open("a") as handle:
        handle.write('{"material_id": "broken", "structure": {}}\n')
    found = joined(tmp_path, *files).store.set_aside
    assert [(crystal.material_id, crystal.stage) for crystal in found] == [("broken", "read")]


def test_a_missing_file_is_named(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: no such file"):
        joined(tmp_path, files[0], tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match=r"data\.path"):
        build({"targets": [{"name": "gap"}], "data": {"path": []}})


@pytest.mark.parametrize("method", sorted(SPLITS.keys() & {"random", "composition", "kfold", "chemical_system"}))
def test_namesakes_stay_on_one_side(method: str) -> None:
    """Fourteen ids that two files have, of other volume and even of another formula; 40 seeds."""
    crystals = []
    for number, metal in enumerate(("Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca", "Sr", "Ba", "Sc", "Y", "Ti", "Zr")):
        crystals.append(CrystalSummary(f"mp-{number}", {metal: 1, "S": 1}, 10.0 + number, (2.0, 2.0)))
        crystals.append(CrystalSummary(f"mp-{number}@b", {metal: 1, "O": 2}, 30.0 + number, (2.5, 2.5)))
    for seed in range(40):
        parts = split(SplitConfig(method=method, val=0.2, test=0.2, seed=seed), crystals)
        for part in (parts.train, parts.val, parts.test):
            assert {f"{name}@b" for name in part if "@" not in name} == {name for name in part if "@" in name}


def test_training_on_two_files(tmp_path: Path, files: tuple[Path, Path]) -> None:
    settings = {
        "targets": [K.model_dump(), GAP.model_dump()],
        "data": {"cache": str(tmp_path / "cache"), "split": {"val": 0.2}},
        "model": {"width": 4, "depth": 1, "gaussians": 6, "head_width": 4},
        "train": {"epochs": 2, "batch_size": 4, "threads": 1, "device": "cpu"},
    }
    run = train(build(settings, [f"data.path=[{files[0]}, {files[1]}]"]), tmp_path / "run")
    assert run.config.data.paths == tuple(map(str, files))
    assert {name for part in (run.split.train, run.split.val) for name in part if "@" in name}
    assert load_model(run.model_file)[1].source["file"] == "moduli.json; gaps.jsonl"
    assert train(run.config, tmp_path / "run", resume=True).metrics == run.metrics
