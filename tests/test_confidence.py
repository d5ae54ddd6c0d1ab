"""What predictions say of their own errors, from the training to the table."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cgnn.data.records import blocks
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.predict import Predictor
from cgnn.predict.forward import FAR, Building, Forward, Network
from cgnn.predict.predictions import joined
from cgnn.train import Ensemble, Run, train, train_ensemble
from cgnn.train.checkpoint import MODEL_FILE, load_model, save_model
from cgnn.train.trust.calibration import LEVEL

NAMES = ("bulk_modulus", "shear_modulus", "radius")
BESIDE = ("_std", "_lower", "_upper")
COLUMNS = [f"{name}{ending}" for name in NAMES for ending in ("", *BESIDE)]
UNITS = {column: "Å" if column.startswith("radius") else "GPa" for column in COLUMNS}


@pytest.fixture(scope="module")
def predictor(calibrated):
    return Predictor.load(calibrated, "cpu")


@pytest.fixture(scope="module")
def data(calibrated):
    return calibrated.parent / "data.jsonl"


@pytest.fixture(scope="module")
def expected(predictor, data):
    return predictor.predict(data)


def flat(values):
    return np.concatenate(values) if isinstance(values, list) else values


def test_columns_and_units(expected):
    assert expected.to_frame().columns.tolist() == ["material_id", *COLUMNS, "novelty", "flags"]
    assert expected.units == UNITS
    for name in NAMES:
        value, std, lower, upper = (flat(expected[f"{name}{ending}"]) for ending in ("", *BESIDE))
        assert ((lower < value) & (value < upper)).all()
        assert (std > 0).all()
        if name != "radius":
            assert (lower > 0).all()
    assert [len(part) for part in expected["radius_std"]] == [len(part) for part in expected["radius"]]


def test_numbers_are_those_of_the_learned_scale(predictor, expected):
    """An interval is symmetric there and as wide as the calibration says; sigma follows the learned spread."""
    learned, calibration = expected.learned["bulk_modulus"], predictor.confidence.calibrations["bulk_modulus"]
    sigma = np.sqrt(calibration.within * learned["scale_within"] ** 2 + calibration.floor)
    assert np.ptp(sigma) > 0
    lower, upper = (np.log10(expected[f"bulk_modulus{end}"]) for end in ("_lower", "_upper"))
    np.testing.assert_allclose((lower + upper) / 2, np.log10(expected["bulk_modulus"]), rtol=1e-9)
    np.testing.assert_allclose(upper - lower, 2 * calibration.half_width(LEVEL) * sigma, rtol=1e-9)
    by_hand = expected["bulk_modulus"] * np.sinh(sigma * np.log(10))
    np.testing.assert_allclose(expected["bulk_modulus_std"], by_hand, rtol=1e-9)


def rows_of(run, part):
    return [row for row in csv.DictReader((run / "predictions.csv").read_text().splitlines()) if row["part"] == part]


def test_the_run_and_the_model_agree(calibrated, expected):
    place = {name: row for row, name in enumerate(expected.ids)}
    for row in rows_of(calibrated, "test"):
        for column in COLUMNS:
            found = json.loads(row[column])
            np.testing.assert_allclose(found, expected[column][place[row["material_id"]]], rtol=1e-5)
    units = json.loads((calibrated / "predictions.csv.units.json").read_text())
    assert units == UNITS


def test_intervals_cover_the_validation_part_as_they_must(calibrated, predictor):
    """Of n crystals of the calibration, exactly ceil((n + 1) 0.9) lie inside; labels are missing in shear modulus."""
    for name in NAMES[:2]:
        rows = [row for row in rows_of(calibrated, "val") if row[f"{name}_true"]]
        assert len(rows) == predictor.confidence.calibrations[name].count
        truth, lower, upper = (
            np.array([float(row[f"{name}{end}"]) for row in rows]) for end in ("_true", "_lower", "_upper")
        )
        # the table has seven digits, too few for the one that lies on the end of its interval
        inside = (truth >= lower * (1 - 1e-6)) & (truth <= upper * (1 + 1e-6))
        assert inside.sum() == -(-(len(rows) + 1) * 90 // 100)
    assert (
        predictor.confidence.calibrations["shear_modulus"].count
        < predictor.confidence.calibrations["bulk_modulus"].count
    )


def test_scores_of_the_test_part_tell_how_true_they_are(calibrated):
    metrics = Run.load(calibrated).metrics
    for name in NAMES:
        assert 0 <= metrics["test"][name]["coverage_90"] <= 1
        assert metrics["test"][name]["width_90"] > 0
        assert not any(key.startswith(("coverage", "width")) for key in metrics["val"][name])


def test_evaluation_has_the_same_scores(calibrated, predictor, data):
    run = Run.load(calibrated)
    test = set(run.split.test)
    lines = [line for line in data.read_text().splitlines() if json.loads(line)["material_id"] in test]
    path = calibrated.parent / "test.jsonl"
    path.write_text("\n".join(lines))
    found = predictor.evaluate(blocks(path)).metrics
    for name in NAMES:
        assert found[name] == pytest.approx(run.metrics["test"][name], rel=1e-4)


def test_joint_draws(predictor, expected, data):
    draws = expected.draws(400, seed=1)
    assert set(draws) == set(NAMES[:2])  # not the target of atoms
    learned = {name: np.log10(values) for name, values in draws.items()}
    for name in NAMES[:2]:
        assert draws[name].shape == (len(expected), 400)
        sigma = predictor.confidence.sigma(name, expected.learned[name])
        z = (learned[name] - np.log10(expected[name])[:, None]) / sigma[:, None]
        assert z.std() == pytest.approx(1, abs=0.02)
    first, second = ((v - v.mean(axis=1, keepdims=True)).ravel() for v in learned.values())
    first, second = (
        (v.reshape(-1, 400) / v.reshape(-1, 400).std(axis=1, keepdims=True)).ravel() for v in (first, second)
    )
    wanted = predictor.confidence.correlation.matrix[0, 1]
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(wanted, abs=0.02)
    again = predictor.predict(data).draws(400, seed=1)
    assert all(np.array_equal(draws[name], again[name]) for name in draws)
    nothing = predictor.predict([]).draws(5)
    assert {name: values.shape for name, values in nothing.items()} == dict.fromkeys(NAMES[:2], (0, 5))


def test_what_is_far_from_training_is_flagged(predictor, expected):
    near = expected["novelty"]
    assert np.mean(near > 1) < 0.05  # most of these are the training crystals themselves
    assert [flag != "" for flag in expected.flags] == (near > 1).tolist()
    strange = [
        Structure(Lattice.cubic(1.6), ["Cu"], [[0, 0, 0]]),
        Structure(Lattice.cubic(1.6), ["U"], [[0, 0, 0]]),
    ]
    found = predictor.predict(strange)
    assert (found["novelty"] > 1).all()
    assert found.flags == [FAR, f"elements not in training: U; {FAR}"]
    assert found.flagged() == {FAR: ["crystal-0", "crystal-1"], "elements not in training: U": ["crystal-1"]}


def test_all_that_is_sent_to_workers_says_the_same(predictor, data, expected):
    network = Network(predictor.members, predictor.info.elements, predictor.confidence)
    forward = Forward(Building(predictor.info.config.graph), copy.copy(network))  # by way of what is pickled
    pieces = [piece for block in blocks(data) for piece in forward(block)]
    assert np.array_equal(
        np.concatenate([piece.columns["bulk_modulus_std"] for piece in pieces]), expected["bulk_modulus_std"]
    )
    assert np.array_equal(np.concatenate([piece.columns["novelty"] for piece in pieces]), expected["novelty"])


def test_pieces_join_to_the_whole(predictor, data, expected, monkeypatch):
    monkeypatch.setattr("cgnn.predict.forward.EDGES_PER_BATCH", 2000)
    found = joined(predictor.stream(blocks(data)), predictor.units, predictor.confidence)
    for column in COLUMNS:
        np.testing.assert_allclose(flat(found[column]), flat(expected[column]), rtol=1e-5)
    np.testing.assert_allclose(found.draws(3)["shear_modulus"], expected.draws(3)["shear_modulus"], rtol=1e-5)


FRESH = """
import sys
from cgnn.predict import Predictor
found = Predictor.load(sys.argv[1], "cpu").predict(sys.argv[2])
found.to_frame()[["bulk_modulus_std", "bulk_modulus_lower", "novelty"]].to_csv(sys.argv[3], float_format="%.17g")
"""


def test_a_fresh_process_says_the_same(calibrated, data, expected, tmp_path):
    command = [sys.executable, "-c", FRESH, str(calibrated), str(data), str(tmp_path / "p.csv")]
    subprocess.run(command, check=True, capture_output=True)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    for column in ("bulk_modulus_std", "bulk_modulus_lower", "novelty"):
        assert [float(row[column]) for row in rows] == expected[column].tolist()


def test_a_finished_run_is_left_as_it_is(calibrated, tmp_path):
    shutil.copytree(calibrated, tmp_path / "run")
    before = (tmp_path / "run" / "best" / MODEL_FILE).read_bytes()
    train(Run.load(calibrated).config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "best" / MODEL_FILE).read_bytes() == before
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (calibrated / "metrics.json").read_bytes()


def test_a_run_stopped_before_the_calibration_ends_the_same(calibrated, tmp_path):
    """As after the last epoch: the model of the best epoch is there, what it knows of itself is not."""
    shutil.copytree(calibrated, tmp_path / "run")
    path = tmp_path / "run" / "best" / MODEL_FILE
    members, info = load_model(path)
    save_model(path, members, replace(info, calibration={}, reference={}))
    train(info.config, tmp_path / "run", resume=True)
    assert path.read_bytes() == (calibrated / "best" / MODEL_FILE).read_bytes()


def test_a_model_that_was_not_calibrated_says_values_only(calibrated, data, expected, tmp_path):
    members, info = load_model(calibrated / "best" / MODEL_FILE)
    save_model(tmp_path / "plain.safetensors", members, replace(info, calibration={}, reference={}))
    found = Predictor.load(tmp_path / "plain.safetensors", "cpu").predict(data)
    assert list(found.columns) == list(NAMES)
    assert np.array_equal(found["bulk_modulus"], expected["bulk_modulus"])
    assert found.flags == [""] * len(found)
    with pytest.raises(DataError, match="no draws: the model has no calibrated targets of whole crystals"):
        found.draws(3)


def test_too_few_crystals_for_either(trained):
    """24 crystals for training and 8 for validation."""
    predictor = Predictor.load(trained, "cpu")
    assert predictor.confidence.targets == ()
    assert predictor.confidence.novelty is None


def hostile(values, **changes):
    return {**values, **changes}


def test_hostile_calibrations_in_a_model_file_are_refused(calibrated, tmp_path):
    members, info = load_model(calibrated / "best" / MODEL_FILE)
    good, path = info.calibration, tmp_path / "hostile.safetensors"
    bulk = good["targets"]["bulk_modulus"]
    cases = [
        (hostile(good, part="train"), "expected targets of part 'val'"),
        (hostile(good, more=1), "expected part, targets, correlation"),
        (hostile(good, targets={}), "not of this model's targets"),
        (hostile(good, targets={**good["targets"], "other": bulk}), "not of this model's targets"),
        (hostile(good, targets={**good["targets"], "bulk_modulus": {**bulk, "floor": -1}}), "not negative"),
        (hostile(good, correlation={"targets": [], "matrix": []}), "not of this model's targets"),
        (hostile(good, correlation=[]), "correlation: expected"),
    ]
    for calibration, match in cases:
        save_model(path, members, replace(info, calibration=calibration))
        with pytest.raises(CheckpointError, match=rf"hostile\.safetensors: .*{match}"):
            load_model(path)
    reference = {**info.reference, "points": info.reference["points"][:, :1]}
    save_model(path, members, replace(info, reference=reference))
    with pytest.raises(CheckpointError, match=r"hostile\.safetensors: reference: shapes do not fit"):
        load_model(path)


def test_the_stored_part_is_small(calibrated):
    _, info = load_model(calibrated / "best" / MODEL_FILE)
    assert len(json.dumps(info.calibration["targets"]["bulk_modulus"])) < 4000
    assert set(info.reference) == {"mean", "whitening", "points", "threshold"}


@pytest.mark.parametrize("name", ["bulk_modulus_std", "bulk_modulus_lower", "bulk_modulus_true"])
def test_names_of_targets_and_columns_do_not_clash(name):
    from cgnn.config import build

    with pytest.raises(ConfigError, match=f"the target name '{name}' is taken by a column of 'bulk_modulus'"):
        build({"targets": [{"name": "bulk_modulus"}, {"name": name}]})
    build({"targets": [{"name": name}]})
    with pytest.raises(ConfigError, match="'kind_p_a' is taken by a column of 'kind'"):
        build({"targets": [{"name": "kind", "task": "multiclass", "classes": ["a", "b"]}, {"name": "kind_p_a"}]})


def test_commands_say_it(calibrated, data, tmp_path, capsys):
    from cgnn.cli import main

    def call(*words):
        with pytest.raises(SystemExit, match=r"^0$"):
            main([str(word) for word in words])
        return capsys.readouterr().out

    facts = call("info", calibrated)
    assert "calibrated   bulk_modulus: 90% interval on " in facts
    assert "labels of the validation part, by learned spread" in facts
    assert "distance from training by " in facts
    shown = call("evaluate", calibrated, data, "--output", tmp_path / "e")
    assert "90 % coverage" in shown
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {"coverage_90", "width_90", "baseline_width_90", "miscalibration_area"} <= set(metrics["bulk_modulus"])
    names = {path.name for path in (tmp_path / "e").iterdir() if path.suffix == ".png"}
    assert names == {
        f"{kind}_{name}.png"
        for kind, name in (*((("reliability"), n) for n in NAMES), ("parity", NAMES[0]), ("parity", NAMES[1]))
    }
    call("predict", calibrated, data, "--output", tmp_path / "p.csv", "--engine", "serial")
    rows = list(csv.DictReader(Path(tmp_path / "p.csv").read_text().splitlines()))
    assert list(rows[0]) == ["material_id", *COLUMNS, "novelty", "flags"]


@pytest.fixture(scope="module")
def ensemble(calibrated, tmp_path_factory):
    """Two members that do not learn their errors: what is known of them comes from how far they are apart."""
    from cgnn.config import build

    values = Run.load(calibrated).config.model_dump(mode="json")
    values["model"]["spread"] = False
    values["train"]["epochs"] = 1
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    train_ensemble(build(values), folder, Ensemble(2, "bootstrap", "serial"))
    return folder


def test_members_that_disagree_are_less_sure(ensemble, data):
    predictor = Predictor.load(ensemble, "cpu")
    assert len(predictor.members) == 2
    calibration = predictor.confidence.calibrations["bulk_modulus"]
    assert calibration.within == 0 < calibration.between
    found = predictor.predict(data)
    apart = found.learned["bulk_modulus"]["variance_between"]
    sigma = np.log10(found["bulk_modulus_upper"] / found["bulk_modulus_lower"])
    order = np.argsort(apart)
    assert (np.diff(sigma[order]) >= -1e-12).all()
    assert np.ptp(sigma) > 0
    place = {name: row for row, name in enumerate(found.ids)}
    for row in rows_of(ensemble, "test"):
        assert float(row["bulk_modulus_std"]) == pytest.approx(
            found["bulk_modulus_std"][place[row["material_id"]]], rel=1e-5
        )
    assert "coverage_90" in Run.load(ensemble).metrics["test"]["bulk_modulus"]


def test_a_finished_ensemble_is_left_as_it_is(ensemble, tmp_path):
    shutil.copytree(ensemble, tmp_path / "run")
    before = (ensemble / "best" / MODEL_FILE).read_bytes()
    train_ensemble(Run.load(ensemble).config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "best" / MODEL_FILE).read_bytes() == before
