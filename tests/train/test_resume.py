"""Whatever stops a run, going on with it ends with the same bits."""

import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch

from cgnn.config import build
from cgnn.errors import CheckpointError, DataError, Stopped
from cgnn.train import loop, run, state
from cgnn.train.checkpoint import MODEL_FILE, STATE_FILE, read_tensors
from cgnn.train.run import Run, train

FILES = (f"best/{MODEL_FILE}", "metrics.json", "predictions.csv", "split.json", "config.yaml", "split_report.json")
FORK = multiprocessing.get_context("fork")  # the child has torch loaded and one thread, as its parent


class Killed(BaseException):
    """Stands for kill -9: nothing is caught, nothing is written after it."""


@pytest.fixture(scope="module")
def unbroken(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(build(settings), folder)
    return folder


def steps_of(folder):
    """Return the number of steps of a finished run: 17 crystals in batches of 5 for each epoch."""
    found = Run.load(folder)
    return len(found.history) * -(-len(found.split.train) // 5)


def without_seconds(content):
    for row in content["progress"]["history"]:
        row.pop("seconds")
    return content


def assert_same_run(folder, unbroken):
    for name in FILES:
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name
    (found, content), (expected, description) = (read_tensors(f / "last" / STATE_FILE) for f in (folder, unbroken))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert without_seconds(content) == without_seconds(description)
    for first, second in zip(Run.load(folder).history, Run.load(unbroken).history, strict=True):
        first.pop("seconds"), second.pop("seconds")
        assert first == second


def finish(settings, folder):
    """Go on with a run, from the beginning if it was stopped before there was a state."""
    if (folder / "last" / STATE_FILE).exists():
        return train(build(settings), folder, resume=True)
    with pytest.warns(UserWarning, match="holds no training state yet; training starts from the beginning"):
        return train(build(settings), folder, resume=True)


def kill_after(patch, step):
    real = loop._Session._step
    count = 0

    def stepped(self, indices):
        nonlocal count
        if count == step:
            raise Killed
        count += 1
        real(self, indices)

    patch.setattr(loop._Session, "_step", stepped)


def check_killed_after(settings, unbroken, tmp_path, monkeypatch, steps):
    for step in steps:
        folder = tmp_path / f"run-{step}"
        with monkeypatch.context() as patch:
            kill_after(patch, step)
            with pytest.raises(Killed):
                train(build(settings), folder)
        finish(settings, folder)
        assert_same_run(folder, unbroken)


def test_killed_after_a_step(settings, unbroken, tmp_path, monkeypatch):
    last = steps_of(unbroken) - 1
    check_killed_after(settings, unbroken, tmp_path, monkeypatch, (0, 1, 2, 3, 4, 6, last))


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3, None])
def test_killed_after_every_step(settings, tmp_path, monkeypatch, every):
    settings = {**settings, "train": {**settings["train"], "checkpoint_every": every, "epochs": 6}}
    train(build(settings), tmp_path / "unbroken")
    steps = range(steps_of(tmp_path / "unbroken"))
    check_killed_after(settings, tmp_path / "unbroken", tmp_path, monkeypatch, steps)


def test_killed_again_and_again(settings, unbroken, tmp_path, monkeypatch):
    """Three steps at a time, with a state each two: the run creeps to its end."""
    folder = tmp_path / "run"
    for attempt in range(100):
        with monkeypatch.context() as patch:
            kill_after(patch, 3)
            try:
                train(build(settings), folder) if attempt == 0 else finish(settings, folder)
                break
            except Killed:
                continue
    assert attempt > 3
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("val", [0.2, 0.0])
def test_short_epochs_share_a_checkpoint(settings, tmp_path, monkeypatch, val):
    data = {**settings["data"], "split": {**settings["data"]["split"], "val": val}}
    training = {**settings["train"], "checkpoint_every": None, "epochs": 5, "patience": None}
    settings = {**settings, "data": data, "train": training}
    real, saved = state.State.save, []

    def counted(self, folder, progress):
        saved.append(progress.epoch)
        real(self, folder, progress)

    monkeypatch.setattr(state.State, "save", counted)
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    train(build(settings), tmp_path / "unbroken")
    assert saved == [1, 2, 3, 4, 5]
    saved.clear()
    monkeypatch.setattr(loop, "SAVE_EVERY", math.inf)
    check_killed_after(settings, tmp_path / "unbroken", tmp_path, monkeypatch, [14])
    assert saved == [1, 2, 5]  # killed two or three epochs after the first, of which the state is; resumed, finished


def in_child(settings, folder, resume, before=lambda: None):
    """Return a started child that trains; it ends with 0, or as the command line does when it is stopped."""

    def work():
        before()
        try:
            import warnings

            warnings.simplefilter("ignore")
            train(build(settings), folder, resume=resume)
        except Stopped as stopped:
            os._exit(128 + stopped.number)
        os._exit(0)

    child = FORK.Process(target=work)
    child.start()
    return child


def ended(child):
    child.join(timeout=120)
    assert child.exitcode is not None
    return child.exitcode


def dies_at(call):
    """Make a child die at its n-th system call that makes files last."""

    def before():
        count = 0
        for name in ("fsync", "replace"):

            def counted(*args, real=getattr(os, name)):  # noqa: B008 - the one of this round
                nonlocal count
                count += 1
                if count == call:
                    os._exit(99)
                return real(*args)

            setattr(os, name, counted)

    return before


def check_dies_at(settings, unbroken, tmp_path, calls):
    codes = []
    for call in calls:
        folder = tmp_path / f"run-{call}"
        codes.append(ended(in_child(settings, folder, False, dies_at(call))))
        if not folder.exists():
            continue
        finish(settings, folder)
        assert_same_run(folder, unbroken)
    return codes


def test_dies_while_writing(settings, unbroken, tmp_path):
    """At a call among those of the first files, of a state in mid-epoch, of the best model, of the results."""
    assert set(check_dies_at(settings, unbroken, tmp_path, (2, 5, 14, 17, 20, 23, 26, 28))) == {99}


@pytest.mark.slow
def test_dies_while_writing_anywhere(settings, unbroken, tmp_path):
    codes = check_dies_at(settings, unbroken, tmp_path, range(1, 200))
    assert codes[0] == 99
    assert codes[-1] == 0  # it had no more calls left


def check_random_kills(settings, tmp_path, rng, kills, longest):
    settings = {**settings, "train": {**settings["train"], "epochs": 25, "patience": 20, "checkpoint_every": 1}}
    train(build(settings), tmp_path / "unbroken")
    killed, serial = 0, 0
    while killed < kills:
        folder = tmp_path / f"run-{serial}"
        serial += 1
        while True:
            child = in_child(settings, folder, folder.exists())
            child.join(timeout=rng.uniform(0.02, longest))
            child.kill()
            code = ended(child)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
        assert_same_run(folder, tmp_path / "unbroken")


def test_killed_at_random_times(settings, tmp_path, rng):
    check_random_kills(settings, tmp_path, rng, 4, 1.0)


@pytest.mark.slow
def test_killed_at_random_times_often(settings, tmp_path, rng):
    check_random_kills(settings, tmp_path, rng, 40, 1.5)


def wait_for(condition, child):
    while not condition():
        assert child.exitcode is None
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_the_state(settings, tmp_path, number, rng):
    settings = {**settings, "train": {**settings["train"], "epochs": 15, "patience": 15, "checkpoint_every": None}}
    train(build(settings), tmp_path / "unbroken")
    folder = tmp_path / "run"
    child = in_child(settings, folder, False)
    wait_for((folder / "history.jsonl").exists, child)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(child.pid, number)
    assert ended(child) == 128 + number
    content = read_tensors(folder / "last" / STATE_FILE)[1]
    assert not content["progress"]["finished"]
    assert not list(folder.rglob("*.tmp"))
    finish(settings, folder)
    assert_same_run(folder, tmp_path / "unbroken")


def test_a_second_signal_acts_at_once(settings, tmp_path):
    """The first is noted in the middle of a step that does not end; the second ends it."""
    started = tmp_path / "started"

    def before():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

        def endless(self, indices):
            started.touch()
            while True:
                time.sleep(0.01)

        loop._Session._step = endless

    child = in_child(settings, tmp_path / "run", False, before)
    wait_for(started.exists, child)
    os.kill(child.pid, signal.SIGTERM)
    time.sleep(0.1)
    assert child.is_alive()
    os.kill(child.pid, signal.SIGTERM)
    assert ended(child) == -signal.SIGTERM


def test_handlers_are_put_back(settings, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(build(settings), tmp_path / "run")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# What does not fit


@pytest.fixture
def half(settings, tmp_path, monkeypatch):
    """The folder of a run that was killed in its second epoch."""
    with monkeypatch.context() as patch:
        kill_after(patch, 6)
        with pytest.raises(Killed):
            train(build(settings), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.width=5", "model.width was 4, is 5"),
        ("train.seed=1", "train.seed was 0, is 1"),
        ("train.epochs=9", "train.epochs was 4, is 9"),
        ("graph.k=8", "graph.k was 12, is 8"),
        ("targets.0.unit=kbar", "targets.0.unit was 'GPa', is 'kbar'"),
        ("targets.1.weight=2", "targets.1.weight was 1.0, is 2.0"),
        ("data.split.seed=3", "data.split.seed was 0, is 3"),
    ],
)
def test_other_settings_are_refused(settings, half, override, message):
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=f"can't resume with other settings: {message}"):
        train(build(settings, [override]), half, resume=True)
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == before


def test_other_data_are_refused(settings, half, tmp_path, unbroken):
    path = Path(settings["data"]["path"])
    content = path.read_bytes()
    documents = orjson.loads(content)
    documents[0]["bulk_modulus"]["vrh"] += 1.0
    try:
        path.write_bytes(orjson.dumps(documents))
        with pytest.raises(CheckpointError, match="can't resume with other data or another split"):
            train(build(settings), half, resume=True)
    finally:
        path.write_bytes(content)
    finish(settings, half)
    assert_same_run(half, unbroken)


def test_other_threads_warn(settings, half):
    torch.set_num_threads(2)
    try:
        with pytest.warns(UserWarning, match="resumed with 2 threads, begun with 1"):
            train(build(settings), half, resume=True)
    finally:
        torch.set_num_threads(1)


def test_damaged_state_is_refused(settings, half, rng):
    path = half / "last" / STATE_FILE
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:-1], content[:-40] + bytes(40)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{STATE_FILE}: (damaged|checksum differs)"):
            train(build(settings), half, resume=True)


def test_a_model_is_no_state(settings, half):
    (half / "last" / STATE_FILE).write_bytes((half / "best" / MODEL_FILE).read_bytes())
    with pytest.raises(CheckpointError, match="no training state of this version"):
        train(build(settings), half, resume=True)


def test_state_of_another_version_is_refused(settings, half, monkeypatch):
    monkeypatch.setattr(state, "VERSION", 99)
    with pytest.raises(CheckpointError, match=r"no training state of this version \(99\)"):
        train(build(settings), half, resume=True)


def test_best_model_that_is_gone_is_told(settings, half, unbroken):
    (half / "best" / MODEL_FILE).unlink()
    (half / "last" / STATE_FILE).write_bytes((unbroken / "last" / STATE_FILE).read_bytes())
    with pytest.raises(CheckpointError, match=rf"best/{MODEL_FILE}: no such file"):
        train(build(settings), half, resume=True)


def test_a_finished_run_is_left_as_it_is(settings, unbroken, tmp_path, monkeypatch):
    before = {name: (unbroken / name).read_bytes() for name in (*FILES, f"last/{STATE_FILE}", "history.jsonl")}
    with monkeypatch.context() as patch:
        kill_after(patch, 0)  # not one step
        train(build(settings), unbroken, resume=True)
    assert {name: (unbroken / name).read_bytes() for name in before} == before


def test_training_does_not_go_on_without_saving(settings, half, monkeypatch):
    """A full disk ends the run with the path; the state before it is good."""
    before = (half / "last" / STATE_FILE).read_bytes()
    real = os.fsync
    steps = []
    monkeypatch.setattr(loop._Session, "_step", noting(loop._Session._step, steps))

    def full(descriptor):
        if STATE_FILE in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=rf"last/{STATE_FILE}: could not be written: No space left on device"):
        train(build(settings), half, resume=True)
    assert len(steps) <= 2
    assert (half / "last" / STATE_FILE).read_bytes() == before
    assert not list(half.rglob("*.tmp"))


def noting(call, calls):
    def wrapped(self, indices):
        calls.append(np.asarray(indices))
        call(self, indices)

    return wrapped


def test_parts_of_a_state(half):
    tensors, content = read_tensors(half / "last" / STATE_FILE)
    assert {name.split(".")[0] for name in tensors} == {"model", "ema", "optimizer"}
    assert content["kind"] == "state"
    assert content["progress"]["epoch"] == 1
    assert content["progress"]["step"] == 2
    assert json.dumps(content)
    assert run.has_state(half)
    assert not run.has_state(half / "last")
