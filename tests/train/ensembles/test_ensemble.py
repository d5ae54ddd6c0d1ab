"""Ensembles: the same members however they are fitted, whatever stopped them, wherever the folder lies."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch

from cgnn.config import build
from cgnn.errors import CheckpointError, ConfigError, NumericsError, WorkerError
from cgnn.predict import Predictor
from cgnn.strict import dump
from cgnn.train import Ensemble, Run, loop, train, train_ensemble
from cgnn.train.checkpoint import MODEL_FILE, STATE_FILE, load_model, read_tensors
from cgnn.train.ensembles import batched
from cgnn.train.ensembles.ensemble import SIDE_BY_SIDE
from cgnn.train.ensembles.member import ENSEMBLES

ROOT = Path(__file__).parents[3]
COMMON = (f"best/{MODEL_FILE}", "metrics.json", "predictions.csv", "split.json", "config.yaml", "split_report.json")


class Killed(BaseException):
    """Stands for kill -9: nothing is caught, nothing is written after it."""


@pytest.fixture(scope="module", params=sorted(ENSEMBLES))
def by(request):
    return request.param


@pytest.fixture(scope="module")
def serial(settings, by, tmp_path_factory):
    """The folder of a finished ensemble; not to be changed."""
    folder = tmp_path_factory.mktemp("serial") / "run"
    train_ensemble(build(settings), folder, Ensemble(2, by, "serial"))
    return folder


def assert_same_ensemble(folder, expected):
    for name in COMMON:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    for place in sorted((expected / "members").glob("[0-9]")):
        found, known = (load_model(f / "members" / place.name / "best" / MODEL_FILE) for f in (folder, expected))
        assert found.info == known.info
        for (name, tensor), other in zip(
            found.members[0].state_dict().items(), known.members[0].state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, other), name


def test_documented_files(serial, by):
    names = {str(path.relative_to(serial)) for path in serial.rglob("*") if path.is_file()}
    own = {"history.jsonl", f"best/{MODEL_FILE}", f"last/{STATE_FILE}"} | (
        {"bootstrap.json"} if by != "seed" else set()
    )
    assert names == {
        *COMMON, "ensemble.json", "set_aside.csv", "predictions.csv.units.json",
        *(f"members/{member}/{name}" for member in (0, 1) for name in own),
    }  # fmt: skip
    assert json.loads((serial / "ensemble.json").read_text()) == {"members": 2, "by": by, "side_by_side": "serial"}


def test_members_differ_and_share_the_split(serial, settings):
    run = Run.load(serial)
    assert run.config == build(settings)
    members, info = load_model(run.model_file)
    assert len(members) == 2
    assert info.config == run.config
    assert not torch.equal(members[0].convs[0].target.weight, members[1].convs[0].target.weight)
    assert torch.equal(members[0].head("bulk_modulus").mean, members[1].head("bulk_modulus").mean)
    for number, member in enumerate(members):
        alone = load_model(serial / "members" / str(number) / "best" / MODEL_FILE)
        assert torch.equal(alone.members[0].convs[0].target.weight, member.convs[0].target.weight)


def test_scores_are_those_of_the_mean(serial):
    """The table holds the mean on the learned scale and the members' spread; the metrics are the mean's."""
    rows = list(csv.DictReader((serial / "predictions.csv").read_text().splitlines()))
    run = Run.load(serial)
    for part, scores in run.metrics.items():
        mine = [row for row in rows if row["part"] == part]
        errors = [float(row["shear_modulus"]) - float(row["shear_modulus_true"]) for row in mine]
        assert scores["shear_modulus"]["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-5)
    assert all(float(row["bulk_modulus_spread"]) > 0 for row in rows)
    info = load_model(run.model_file).info
    assert info.summary["val_bulk_modulus_mae"] == run.metrics["val"]["bulk_modulus"]["mae"]


def test_bootstrap_draws_as_many_as_there_are(serial, by):
    if by != "bootstrap":
        pytest.skip("draws nothing")
    training = Run.load(serial).split.train
    drawn = [json.loads((serial / "members" / str(member) / "bootstrap.json").read_text()) for member in (0, 1)]
    for counts in drawn:
        assert set(counts) < set(training)
        assert sum(counts.values()) == len(training)
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_same_bits(settings, serial, by, tmp_path, workers):
    rows = []
    plan = Ensemble(2, by, "processes", workers)
    report = lambda member: lambda row: rows.append((member, row["val_score"]))  # noqa: E731
    train_ensemble(build(settings), tmp_path / "run", plan, report=report)
    assert_same_ensemble(tmp_path / "run", serial)
    for member in (0, 1):
        scores = [row["val_score"] for row in history(serial, member)]
        assert [score for number, score in rows if number == member] == scores


def history(folder, member):
    lines = (folder / "members" / str(member) / "history.jsonl").read_bytes().splitlines()
    return [{name: value for name, value in orjson.loads(line).items() if name != "seconds"} for line in lines]


MODELS = {
    "plain": {},
    "deep": {"depth": 2, "descriptors": ["element_statistics", "volume"], "elements": ["one_hot", "properties"]},
    "layer norms": {"norm": "layer", "pair_norm": "layer", "activation": "silu", "spread": True},
    "no residual": {"residual": False, "norm": "none", "pooling": "sum"},
    "max": {"pooling": "max"},
    "attention": {"pooling": "attention", "dropout": 0.0},
    "residual": {"depth": 2, "residual": False, "remedy": "residual"},
    "identity skip": {"depth": 2, "remedy": "identity_skip"},
    "layer scale": {"depth": 3, "remedy": "layer_scale", "edge_updates": True, "spread": True},
}


@pytest.mark.parametrize("model", MODELS)
def test_batched_members_learn_what_they_learn_alone(settings, by, tmp_path, model):
    """In double precision the two ways differ by the order of sums: weights agree to 1e-7 after fifteen steps.

    Biases before a batch normalisation have no gradient but rounding, which Adam blows up; no prediction depends on
    them, so there predictions are compared alone.
    """
    training = {**settings["train"], "precision": "64-true", "learning_rate": 0.01}
    config = build({**settings, "model": {**settings["model"], **MODELS[model]}, "train": training})
    folders = [tmp_path / way for way in ("serial", "batched")]
    for folder in folders:
        train_ensemble(config, folder, Ensemble(2, by, folder.name))
    first, second = (load_model(folder / "best" / MODEL_FILE) for folder in folders)
    for alone, together in zip(first.members, second.members, strict=True):
        for (name, tensor), other in zip(alone.state_dict().items(), together.state_dict().values(), strict=True):
            if not name.endswith("target.bias"):
                np.testing.assert_allclose(tensor, other, rtol=1e-6, atol=1e-7, err_msg=name)
    tables = [csv.DictReader((folder / "predictions.csv").read_text().splitlines()) for folder in folders]
    for one, other in zip(*tables, strict=True):
        for name in ("bulk_modulus", "shear_modulus", "bulk_modulus_spread"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=2e-6)
    for member in (0, 1):
        for one, other in zip(*(history(folder, member) for folder in folders), strict=True):
            assert one == pytest.approx(other, rel=1e-6)


def test_running_statistics_move_for_each_member(settings, tmp_path):
    config = build(settings, ["train.ema=0.0", "train.epochs=1"])
    train_ensemble(config, tmp_path / "run", Ensemble(2, "seed", "batched"))
    first, second = load_model(tmp_path / "run" / "best" / MODEL_FILE).members
    for name in ("norm", "pair_norm"):
        norm, other = (getattr(member.convs[0], name) for member in (first, second))
        assert norm.num_batches_tracked.shape == ()
        assert int(norm.num_batches_tracked) == int(other.num_batches_tracked) == 4  # 17 crystals in batches of 5
        assert not torch.equal(norm.running_mean, other.running_mean)
        assert bool((norm.running_var != 1).all())


SESSIONS = {"serial": loop._Session, "batched": batched._Session}


def kill_after(patch, session, step):
    real = session._step
    count = 0

    def stepped(self, indices):
        nonlocal count
        if count == step:
            raise Killed
        count += 1
        real(self, indices)

    patch.setattr(session, "_step", stepped)


@pytest.mark.parametrize("way", SESSIONS)
def test_killed_and_resumed(settings, by, tmp_path, monkeypatch, way):
    """Killed before the first state, in mid-epoch, in the second member: the same bits as unbroken."""
    plan = Ensemble(2, by, way)
    train_ensemble(build(settings), tmp_path / "unbroken", plan)
    steps = {"serial": (0, 3, 17), "batched": (0, 3, 9)}[way]
    for step in steps:
        folder = tmp_path / f"run-{step}"
        with monkeypatch.context() as patch:
            kill_after(patch, SESSIONS[way], step)
            with pytest.raises(Killed):
                train_ensemble(build(settings), folder, plan)
        train_ensemble(build(settings), folder, resume=True)
        assert_same_ensemble(folder, tmp_path / "unbroken")


def test_a_finished_ensemble_is_left_as_it_is(settings, by, serial, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(serial, folder)
    for way in ("serial", "processes"):  # the same bits, so one can go on with what the other began
        with monkeypatch.context() as patch:
            kill_after(patch, loop._Session, 0)
            train_ensemble(build(settings), folder, Ensemble(2, by, way), resume=True)
        assert_same_ensemble(folder, serial)


def test_moved_folder_predicts_the_same(serial, tmp_path, embedded_documents):
    """Elsewhere, and without the members' own files."""
    path = tmp_path / "few.json"
    path.write_bytes(orjson.dumps(embedded_documents[:6]))
    expected = Predictor.load(serial, "cpu").predict(path)
    shutil.copytree(serial, tmp_path / "moved", ignore=shutil.ignore_patterns("members", "last"))
    predictor = Predictor.load(tmp_path / "moved", "cpu")
    assert len(predictor.members) == 2
    found = predictor.predict(path)
    for name in ("bulk_modulus", "shear_modulus"):
        assert np.array_equal(found[name], expected[name])
    assert list(found.table()) == ["material_id", "bulk_modulus", "shear_modulus", "flags"]


# What does not fit


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"members": 1}, "members 1: an ensemble has at least 2"),
        ({"by": "bootstrp"}, "unknown ensemble 'bootstrp'; did you mean 'bootstrap'"),
        ({"side_by_side": "batch"}, "unknown way to fit members side by side 'batch'; did you mean 'batched'"),
        ({"workers": -1}, "workers -1: expected a number from 0"),
    ],
)
def test_odd_ensembles_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Ensemble(**values)


def test_what_can_not_be_resumed(settings, serial, by, tmp_path):
    other = {"seed": "bootstrap", "bootstrap": "seed"}[by]
    for plan, message in (
        (Ensemble(3, by), "members was 2, is 3"),
        (Ensemble(2, other), f"by was '{by}', is '{other}'"),
        (Ensemble(2, by, "batched"), "side by side was 'serial', is 'batched'"),
    ):
        with pytest.raises(CheckpointError, match=f"can't resume with other settings: {message}"):
            train_ensemble(build(settings), serial, plan, resume=True)
    with pytest.raises(CheckpointError, match=r"can't resume with other settings: model\.width was 4, is 5"):
        train_ensemble(build(settings, ["model.width=5"]), serial, resume=True)
    with pytest.raises(ConfigError, match="is not empty"):
        train_ensemble(build(settings), serial)
    with pytest.raises(ConfigError, match="holds an ensemble"):
        train(build(settings), serial, resume=True)
    (tmp_path / "ensemble.json").write_text('{"members": "x"}')
    with pytest.raises(CheckpointError, match=r"ensemble\.json: could not be read"):
        train_ensemble(build(settings), tmp_path, resume=True)


def test_a_run_of_one_network_is_no_ensemble(trained, small_settings):
    with pytest.raises(ConfigError, match="holds a run of one network"):
        train_ensemble(build(small_settings), trained, resume=True)


def test_settings_for_single_networks(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.devices: a member of an ensemble is fitted on one device"):
        train_ensemble(build(settings, ["train.devices=2"]), tmp_path / "run")
    with pytest.raises(ConfigError, match="not for members fitted at once"):
        train_ensemble(build(settings, ["train.compile=true"]), tmp_path / "run", Ensemble(2, "seed", "batched"))


@pytest.mark.parametrize("way", sorted(set(SIDE_BY_SIDE) - {"ray"}))  # whose workers start slowly
def test_numbers_that_run_away_name_the_crystals(settings, tmp_path, way):
    config = build(settings, ["train.learning_rate=1e30", "train.schedule=constant", "train.clip=null"])
    with pytest.raises(NumericsError, match=r"became (nan|inf) in epoch \d+, step \d+.*crystals of the batch: "):
        train_ensemble(config, tmp_path / "run", Ensemble(2, "seed", way))


def test_a_process_that_dies_is_told(settings, tmp_path):
    """As for want of memory; the other members save their states, and all goes on."""
    killed = []

    def kill(row):
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    config = build(settings, ["train.epochs=20", "train.patience=null"])
    plan = Ensemble(2, "seed", "processes", 2)
    with pytest.raises(WorkerError, match=r"member \d: its process ended with exit code -9"):
        train_ensemble(config, tmp_path / "run", plan, report=lambda member: kill)
    train_ensemble(config, tmp_path / "run", resume=True)
    train_ensemble(config, tmp_path / "unbroken", Ensemble(2, "seed", "serial"))
    assert_same_ensemble(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.parametrize("way", ["processes", "batched"])
def test_a_signal_saves_all_states(settings, tmp_path, way):
    """SIGTERM to the command ends every member with its state saved; resumed, it gives the unbroken one's bits."""
    changed = {**settings, "train": {**settings["train"], "epochs": 30, "patience": None, "checkpoint_every": None}}
    (tmp_path / "run.yaml").write_text(dump(build(changed)))
    folder = tmp_path / "run"
    options = ["--members", "2", "--side-by-side", way, "--workers", "2"]
    command = [sys.executable, "-m", "cgnn.cli", "train", str(tmp_path / "run.yaml"), "--output", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    child = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    states = [folder / "members" / member / "history.jsonl" for member in ("0", "1")]
    while not all(state.exists() for state in states):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 143, said
    assert "the state is saved" in said
    for state in (folder / "members").rglob(STATE_FILE):
        assert 1 <= read_tensors(state)[1]["progress"]["epoch"] <= 30
    train_ensemble(build(changed), folder, resume=True)
    train_ensemble(build(changed), tmp_path / "unbroken", Ensemble(2, "seed", "serial" if way == "processes" else way))
    assert_same_ensemble(folder, tmp_path / "unbroken")
