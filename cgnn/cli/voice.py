"""What the command line says: results on standard output; messages, warnings and progress on standard error and
in a run's log."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""

_listeners: list[Callable[[str], None]] = []


def show(text: str) -> None:
    """Give a result, on standard output."""
    _echo(text, err=False)


def say(line: str) -> None:
    """Tell the user, on standard error: standard output is for results."""
    line = _without_key(line)
    _echo(line, err=True)
    note(line)


def note(line: str) -> None:
    """Write into the run's log only."""
    for listener in _listeners:
        listener(line)


def _echo(text: str, err: bool) -> None:
    try:
        typer.echo(text, err=err)
    except BrokenPipeError:  # the reader has gone, as with "| head": the work goes on, and its exit code counts
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, (sys.stderr if err else sys.stdout).fileno())
        os.close(null)


@contextmanager
def own_warnings() -> Iterator[None]:
    """Say our own warnings in one line each; those of libraries are not for users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module=r"cgnn(\.|$)")
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *rest: Any, **named: Any) -> None:
    say(f"warning: {message}")


@contextmanager
def own_signals() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, with everything tidied up: no half-written files are left."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    except _Terminated:
        say("stopped")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(SystemExit):
    """SIGTERM arrived; nothing that catches errors may catch it."""


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """Pass the items on under a progress bar on a terminal, with a line now and then elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, unit="crystal", desc="crystals")
        return
    lines = _Lines()
    for item in items:
        yield item
        lines.add(1)


@contextmanager
def counting() -> Iterator[Callable[[int], object]]:
    """Give a function that is told how many more crystals are done: a progress bar on a terminal, else lines."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(unit="crystal", desc="crystals") as bar:
            yield bar.update
        return
    yield _Lines().add


def crystals_text(count: int) -> str:
    """Return a number of crystals in words."""
    return f"{count:,} crystal{'' if count == 1 else 's'}"


class _Lines:
    """Says now and then how many crystals are done."""

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()
        self._count = 0

    def add(self, crystals: int) -> None:
        self._count += crystals
        now = time.monotonic()
        if now - self._said >= EVERY:
            self._said = now
            rate = self._count / (now - self._started)
            pace = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            say(f"{crystals_text(self._count)}, {pace} per second")


class Epochs:
    """Reports epochs: a progress bar with rate and time left on a terminal, a line per epoch elsewhere and in the log.

    Args:
        epochs: Their number.
    """

    def __init__(self, epochs: int) -> None:
        self._total = epochs
        self._bar: Any = None

    def __enter__(self) -> Callable[[dict[str, float]], None]:
        return self._report

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _report(self, row: dict[str, float]) -> None:
        line = epoch_line(row, self._total)
        if not sys.stderr.isatty():
            say(line)
            return
        note(line)
        if self._bar is None:
            self._bar = self._begin(row)
        if "val_score" in row:
            self._bar.set_postfix_str(f"val {row['val_score']:.4f}", refresh=False)
        self._bar.update(1)

    def _begin(self, row: dict[str, float]) -> Any:
        """Return a bar that begins where the first epoch of this call began: a resumed run has epochs behind it."""
        from tqdm import tqdm

        bar = tqdm(total=self._total, initial=int(row["epoch"]) - 1, unit="epoch", desc="training")
        bar.start_t -= row["seconds"]
        bar.last_print_t -= row["seconds"]
        return bar


def epoch_line(row: dict[str, float], epochs: int) -> str:
    """Return an epoch's row of the history for people."""
    score = f"  val {row['val_score']:.4f}" if "val_score" in row else ""
    return f"epoch {int(row['epoch'])}/{epochs}  train {row['train_loss']:.4f}{score}  {row['seconds']:.1f} s"


class LogFile:
    """Copies what is said into ``log.txt`` of a run folder; what comes before there is a run waits for it.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[str] = []
        self._is_begun = False

    def __enter__(self) -> None:
        _listeners.append(self._write)

    def __exit__(self, kind: object, error: object, *rest: object) -> None:
        _listeners.remove(self._write)
        if self._is_begun and isinstance(error, Exception) and not isinstance(error, typer.Exit):
            self._write(f"ended by {type(error).__name__}: {error}")

    def _write(self, line: str) -> None:
        from cgnn.files import writing

        self._waiting.append(line)
        if not (self._folder / "config.yaml").exists():
            return
        path = self._folder / "log.txt"
        with writing(path), open(path, "a", encoding="utf-8") as handle:
            handle.writelines(f"{entry}\n" for entry in self._waiting)
        self._waiting.clear()
        self._is_begun = True


def write_traceback() -> str:
    """Write the traceback of the current error to a file of its own and return its path."""
    with tempfile.NamedTemporaryFile("w", prefix="cgnn-error-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(_without_key(traceback.format_exc()))
    return file.name


def _without_key(text: str) -> str:
    """Blot out the API key, whatever brought it into a message."""
    key = os.environ.get("MP_API_KEY", "").strip()
    return text.replace(key, "***") if len(key) >= 8 else text
