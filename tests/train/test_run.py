import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pymatgen.core import Lattice, Structure

from cgnn.config import build, load
from cgnn.data.split import Split
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.strict import dump
from cgnn.train.checkpoint import MODEL_FILE, STATE_FILE, load_model, read_tensors
from cgnn.train.run import Run, has_state, train

ROOT = Path(__file__).parents[2]
TARGETS = ("bulk_modulus", "shear_modulus")


def changed(settings, **sections):
    values = json.loads(json.dumps(settings))
    for section, entries in sections.items():
        values[section] |= entries
    return build(values)


def test_documented_files(trained):
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "split.json", "split_report.json", "set_aside.csv", "history.jsonl", "metrics.json",
        "predictions.csv", "predictions.csv.units.json", f"best/{MODEL_FILE}", f"last/{STATE_FILE}",
    }  # fmt: skip


def test_run_is_read_back(trained, small_settings):
    run = Run.load(trained)
    assert run.config == build(small_settings) == load(trained / "config.yaml")
    assert len(run.history) == 3
    assert run.model_file.is_file()
    (model,), info = load_model(run.model_file)
    assert info.config == run.config
    assert tuple(target.name for target in model.targets) == TARGETS
    assert has_state(trained)


def test_split_is_stored_as_ids(trained, export):
    split = Split.load(trained / "split.json")
    ids = [*split.train, *split.val, *split.test]
    assert len(ids) == len(set(ids)) == 40
    assert (len(split.train), len(split.val), len(split.test)) == (24, 8, 8)
    report = json.loads((trained / "split_report.json").read_text())
    assert report["counts"] == {"train": 24, "val": 8, "test": 8, "left_out": 0}


def test_scores_are_complete(trained):
    metrics = Run.load(trained).metrics
    assert set(metrics) == {"val", "test"}
    expected = {"n"} | {
        f"{score}{scale}" for score in ("mae", "rmse", "r2", "baseline_mae") for scale in ("", "_log10")
    }
    for part in metrics.values():
        assert set(part) == set(TARGETS)
        for scores in part.values():
            assert set(scores) == expected
            assert scores["n"] == 8


def test_scores_equal_the_table(trained):
    """Metrics by hand from ``predictions.csv``, within the digits it is written with."""
    run = Run.load(trained)
    rows = list(csv.DictReader((trained / "predictions.csv").read_text().splitlines()))
    assert [row["material_id"] for row in rows] == [*run.split.val, *run.split.test]
    for part in ("val", "test"):
        for name in TARGETS:
            predicted, truth = (
                np.array([float(row[column]) for row in rows if row["part"] == part])
                for column in (name, f"{name}_true")
            )
            scores = run.metrics[part][name]
            assert scores["mae"] == pytest.approx(np.abs(predicted - truth).mean(), rel=1e-5)
            assert scores["rmse"] == pytest.approx(np.sqrt(((predicted - truth) ** 2).mean()), rel=1e-5)
            logs = np.log10(predicted) - np.log10(truth)
            assert scores["mae_log10"] == pytest.approx(np.abs(logs).mean(), rel=1e-4)
            assert scores["r2"] == pytest.approx(
                1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum(), rel=1e-4, abs=1e-5
            )
    assert json.loads((trained / "predictions.csv.units.json").read_text()) == dict.fromkeys(TARGETS, "GPa")


def test_validation_of_the_best_epoch_is_that_of_the_metrics(trained):
    run = Run.load(trained)
    _, info = load_model(run.model_file)
    for name in TARGETS:
        assert info.summary[f"val_{name}_mae"] == pytest.approx(run.metrics["val"][name]["mae"], rel=1e-6)


def test_baseline_is_the_training_mean(trained, small_settings, embedded_documents):
    run = Run.load(trained)
    labels = {d["material_id"]: d["bulk_modulus"]["vrh"] for d in embedded_documents}
    mean = np.mean([labels[name] for name in run.split.train])
    expected = np.mean([abs(labels[name] - mean) for name in run.split.test])
    assert run.metrics["test"]["bulk_modulus"]["baseline_mae"] == pytest.approx(expected)


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_is_never_overwritten(trained, small_settings, resume, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and a run is never overwritten"):
        train(build(small_settings), tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    if not resume:
        with pytest.raises(ConfigError, match="is not empty"):
            train(build(small_settings), trained)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file: is a file"):
        train(build(small_settings), tmp_path / "file")


def test_without_data(small_settings, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path: not set"):
        train(changed(small_settings, data={"path": ""}), tmp_path / "run")
    with pytest.raises(DataError, match=r"nothing\.json: no such file"):
        train(changed(small_settings, data={"path": str(tmp_path / "nothing.json")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_column_leaves_no_folder(small_settings, tmp_path):
    values = json.loads(json.dumps(small_settings))
    values["targets"][0]["column"] = "bulk_modulus.vhr"
    with pytest.raises(DataError, match=r"unknown column 'bulk_modulus\.vhr'; did you mean 'bulk_modulus\.vrh'"):
        train(build(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"no run: there is no config\.yaml"):
        Run.load(tmp_path)


def test_only_training(small_settings, tmp_path):
    """Neither validation nor test: no scores, but a model."""
    run = train(changed(small_settings, data={"split": {"val": 0.0, "test": 0.0}}), tmp_path / "run")
    assert run.metrics == {} == Run.load(tmp_path / "run").metrics
    assert len(run.split.train) == 40
    assert run.model_file.is_file()


def test_set_aside_crystals_are_listed(small_settings, embedded_documents, tmp_path):
    documents = json.loads(json.dumps(embedded_documents[::20][:20]))
    documents[3]["structure"]["sites"] = []
    documents[5]["bulk_modulus"]["vrh"] = "soft"
    documents[7]["bulk_modulus"] = documents[7]["shear_modulus"] = None
    overlap = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]]).as_dict()
    documents[9]["structure"] = overlap
    (tmp_path / "export.json").write_text(json.dumps(documents))
    config = changed(small_settings, data={"path": str(tmp_path / "export.json")})
    run = train(config, tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "set_aside.csv").read_text().splitlines()))
    found = {row["material_id"]: (row["stage"], row["code"]) for row in rows}
    names = [document["material_id"] for document in documents]
    assert set(found) == {names[3], names[5], names[7], names[9]}
    assert found[names[5]] == ("label", "bad_label")
    assert found[names[7]] == ("label", "no_label")
    assert found[names[9]] == ("graph", "overlap")
    assert {aside.material_id for aside in run.set_aside} == set(found)
    assert sorted([*run.split.train, *run.split.val, *run.split.test]) == sorted(set(names) - set(found))


def test_advice_is_a_warning(small_settings, tmp_path):
    values = json.loads(json.dumps(small_settings))
    values["targets"] = [{"name": "K", "column": "bulk_modulus.vrh", "unit": "eV"}]
    with pytest.warns(UserWarning, match="perhaps in another unit"):
        train(build(values), tmp_path / "run")


# The command line, in processes of their own


def command(config, folder, *options):
    return [sys.executable, "-m", "cgnn.cli", "train", str(config), "--output", str(folder), *options]


def environment(tmp_path):
    return {**os.environ, "CGNN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_command_with_its_code(small_settings, tmp_path, number):
    config = tmp_path / "run.yaml"
    config.write_text(dump(changed(small_settings, train={"epochs": 100_000})))
    child = subprocess.Popen(
        command(config, tmp_path / "run"), env=environment(tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "run" / "history.jsonl").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert "the state is saved" in said
    assert read_tensors(tmp_path / "run" / "last" / STATE_FILE)[1]["progress"]["epoch"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
def test_two_processes_on_the_cpu(small_settings, tmp_path, missing, embedded_documents):
    """Two processes leave one whole run; also where one of them meets no label of a target."""
    documents = json.loads(json.dumps(embedded_documents[::12][:40]))
    for row, document in enumerate(documents):
        if missing:
            document[("bulk_modulus", "shear_modulus")[row % 2]] = None
    (tmp_path / "export.json").write_text(json.dumps(documents))
    config = tmp_path / "run.yaml"
    config.write_text(
        dump(changed(small_settings, data={"path": str(tmp_path / "export.json")}, train={"batch_size": 3}))
    )
    options = ["-o", "train.devices=2", "-o", "train.device=cpu"]
    found = subprocess.run(
        command(config, tmp_path / "run", *options), env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    run = Run.load(tmp_path / "run")
    assert len(run.history) == 3
    assert set(run.metrics) == {"val", "test"}
    (model,), _ = load_model(run.model_file)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["devices"] == 2


@pytest.mark.parametrize(
    "settings",
    [{"method": "prototype"}, {"method": "extrapolation", "target": "shear_modulus"}],
    ids=lambda s: s["method"],
)
def test_splits_that_look_at_crystals_and_labels(small_settings, tmp_path, settings):
    data = small_settings["data"]
    data = data | {"split": data["split"] | settings}
    run = train(
        build(small_settings | {"data": data, "train": small_settings["train"] | {"epochs": 1}}), tmp_path / "run"
    )
    assert run.split.method == settings["method"]
    said = json.loads((tmp_path / "run" / "split_report.json").read_text())
    assert said["test"].get("prototype_in_train", 0) == 0
    assert ("prototype_in_train" in said["test"]) == (settings["method"] == "prototype")
