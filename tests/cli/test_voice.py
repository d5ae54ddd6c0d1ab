"""What is said, where it is said, and how a command stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from samples import Run

from cgnn.cli import voice
from cgnn.errors import NumericsError

ROW = {"epoch": 3, "train_loss": 0.5, "val_score": 0.25, "seconds": 0.1}


def test_epochs_are_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with voice.Epochs(10) as report:
        report(ROW)
        report({**ROW, "epoch": 4, "val_score": float("nan")})
        report({"epoch": 5, "train_loss": 0.5, "seconds": 0.1})
    assert capsys.readouterr().err.splitlines() == [
        "epoch 3/10  train 0.5000  val 0.2500  0.1 s",
        "epoch 4/10  train 0.5000  val nan  0.1 s",
        "epoch 5/10  train 0.5000  0.1 s",
    ]


def test_epochs_are_a_bar_on_a_terminal_and_lines_in_the_log(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    (tmp_path / "config.yaml").touch()
    with voice.LogFile(tmp_path), voice.Epochs(4) as report:
        report(ROW)
        report({**ROW, "epoch": 4})
    shown = capsys.readouterr()
    assert "4/4" in shown.err
    assert "val 0.2500" in shown.err
    assert "\n" not in shown.err.rstrip("\n")
    assert shown.out == ""
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_crystals_are_counted_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(voice.counted(iter("abc"))) == ["a", "b", "c"]
    assert "3crystal" in capsys.readouterr().err


def test_crystals_are_counted_in_lines_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0.0, 100.0, voice.EVERY / 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(voice.counted("abcd")) == ["a", "b", "c", "d"]
    assert capsys.readouterr().err == "2 crystals, 0.067 per second\n4 crystals, 0.067 per second\n"


def test_the_log_waits_for_its_run(tmp_path: Path) -> None:
    with voice.LogFile(tmp_path / "run"):
        voice.say("before")
        assert not (tmp_path / "run").exists()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").touch()
        voice.say("after")
    voice.say("nobody listens")
    assert (tmp_path / "run" / "log.txt").read_text() == "before\nafter\n"


def test_the_log_says_why_a_run_ended(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()

    def fail() -> None:
        with voice.LogFile(tmp_path):
            voice.say("epoch 1")
            raise NumericsError("the loss became nan")

    with pytest.raises(NumericsError, match="became nan"):
        fail()
    assert (tmp_path / "log.txt").read_text() == "epoch 1\nended by NumericsError: the loss became nan\n"


def test_the_key_is_never_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MP_API_KEY", "sentinel-0123456789")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    voice.say("refused: key sentinel-0123456789")
    try:
        raise ValueError("header X-API-KEY: sentinel-0123456789")
    except ValueError:
        log = Path(voice.write_traceback())
    assert capsys.readouterr().err == "refused: key ***\n"
    assert "sentinel" not in log.read_text()
    assert "X-API-KEY: ***" in log.read_text()


def test_only_our_own_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with voice.own_warnings():
        warnings.warn_explicit("units?", UserWarning, "run.py", 1, module="cgnn.train.run")
        warnings.warn_explicit("old numpy", UserWarning, "x.py", 1, module="pymatgen.core")
        warnings.warn_explicit("soon", FutureWarning, "x.py", 1, module="cgnn.train.run")
    assert capsys.readouterr().err == "warning: units?\n"


def _signal_in_epoch(number: int, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = voice.Epochs._report

    def report(self: voice.Epochs, row: dict[str, float]) -> None:
        quiet(self, row)
        if row["epoch"] == epoch:
            signal.raise_signal(number)

    monkeypatch.setattr(voice.Epochs, "_report", report)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_goes_on(
    number: int, code: int, cgnn: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert cgnn("train", config, "--output", whole, "-o", "train.epochs=4").code == 0
    with monkeypatch.context() as patch:
        _signal_in_epoch(number, 2, patch)
        stopped = cgnn("train", config, "--output", run, "-o", "train.epochs=4")
    assert stopped.code == code
    assert stopped.err.splitlines()[-1] == "stopped; the state is saved: the same command with --resume goes on"
    assert f"ended by Stopped: stopped by signal {number}" in (run / "log.txt").read_text()
    resumed = cgnn("train", "--resume", "--output", run)
    assert resumed.code == 0
    assert "epoch 3/4" in resumed.err
    assert "epoch 2/4" not in resumed.err
    for name in ("best/model.safetensors", "last/state.safetensors", "metrics.json", "predictions.csv"):
        if name != "last/state.safetensors":  # which holds the seconds of each epoch
            assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_prediction_leaves_nothing(
    number: int, code: int, cgnn: Run, trained: Path, mess: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def counting() -> Iterator[Callable[[int], object]]:
        yield lambda crystals: signal.raise_signal(number)

    monkeypatch.setattr("cgnn.cli.commands.counting", counting)
    (tmp_path / "p.csv").write_text("of yesterday")
    done = cgnn("predict", trained, mess / "good.json", "--output", tmp_path / "p.csv")
    assert (done.code, done.err) == (code, "stopped\n")
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    assert (tmp_path / "p.csv").read_text() == "of yesterday"


def test_sigterm_from_outside(config: Path, tmp_path: Path) -> None:
    """A true process: from the first epoch on, SIGTERM ends it with its state saved."""
    call = [sys.executable, "-m", "cgnn.cli", "train", str(config), "--output", str(tmp_path / "run")]
    with subprocess.Popen([*call, "-o", "train.epochs=100000"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("epoch 1/100000") for line in lines)
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert process.returncode == 143
    assert rest[-1].startswith("stopped; the state is saved")
    assert (tmp_path / "run" / "last" / "state.safetensors").is_file()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_reader_that_has_gone_costs_nothing(mess: Path, trained: Path, tmp_path: Path) -> None:
    """As with ``cgnn evaluate ... 2>&1 | true``: the results are written and the exit code is that of the work."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    call = [sys.executable, "-m", "cgnn.cli", "evaluate", str(trained), str(mess / "bad.json")]
    done = subprocess.run([*call, "--output", str(tmp_path / "e")], stdout=write_end, stderr=write_end, check=False)
    os.close(write_end)
    assert done.returncode == 3
    assert (tmp_path / "e" / "metrics.json").is_file()


def test_the_key_is_written_nowhere(
    cgnn: Run, config: Path, mess: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is run, failures among it, and all that was written or said is searched for the key."""
    key = "sentinel-9876543210"
    monkeypatch.setenv("MP_API_KEY", key)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def refused(*arguments: object) -> None:
        raise RuntimeError(f"403 Forbidden: X-API-KEY {key}")

    monkeypatch.setattr("cgnn.data.mp.fetch", refused)
    run = tmp_path / "run"
    outcomes = [
        cgnn("train", config, "-o", f"data.cache={tmp_path / 'cache'}", "-o", "train.epochs=1", "--output", run),
        cgnn("evaluate", run, mess / "bad.json", "--output", tmp_path / "e"),
        cgnn("predict", run, mess / "mixed", "--output", tmp_path / "p.csv"),
        cgnn("info", run),
        cgnn("fetch", tmp_path / "export.json.gz"),
    ]
    assert [outcome.code for outcome in outcomes] == [0, 3, 3, 0, 1]
    assert not [outcome for outcome in outcomes if key in outcome.out + outcome.err]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert not [path for path in files if key.encode() in path.read_bytes()]
