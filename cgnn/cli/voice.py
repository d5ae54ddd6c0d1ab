"""What the command line says: messages, warnings, progress; on standard error, and into a run's log."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


def say(line: str) -> None:
    """Tell the user, on standard error: standard output is for results."""
    typer.echo(line, err=True)
    for listener in _listeners:
        listener(line)


def show_warning(message: Warning | str, *rest: Any, **named: Any) -> None:
    """Say a Python warning in one line, without its place in the source."""
    say(f"warning: {message}")


def counted(items: Any) -> Any:
    """Return the items under a progress bar, on a terminal."""
    from tqdm import tqdm

    return tqdm(items, unit="crystal", desc="crystals", disable=not sys.stderr.isatty())


class Epochs:
    """Reports epochs: a progress bar with rate and time left on a terminal, a line per epoch elsewhere."""

    def __init__(self, epochs: int) -> None:
        from tqdm import tqdm

        self._total = epochs
        self._bar = tqdm(total=epochs, unit="epoch", desc="training", disable=not sys.stderr.isatty())

    def __enter__(self) -> Callable[[dict[str, float]], None]:
        return self._report

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _report(self, row: dict[str, float]) -> None:
        if self._bar.disable:
            say(epoch_line(row, self._total))
        self._bar.n = int(row["epoch"])
        self._bar.set_postfix_str(f"val {row.get('val_score', float('nan')):.4f}")
        self._bar.refresh()


def epoch_line(row: dict[str, float], epochs: int) -> str:
    """Return an epoch's row of the history for people."""
    score = f"  val {row['val_score']:.4f}" if "val_score" in row else ""
    return f"epoch {int(row['epoch'])}/{epochs}  train {row['train_loss']:.4f}{score}  {row['seconds']:.1f} s"


class LogFile:
    """Copies what is said into ``log.txt`` of a run folder once that exists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        _listeners.append(self._write)

    def __exit__(self, *error: object) -> None:
        _listeners.remove(self._write)

    def _write(self, line: str) -> None:
        if (self._folder / "config.yaml").exists():
            with open(self._folder / "log.txt", "a", encoding="utf-8") as handle:
                handle.write(line + "\n")


_listeners: list[Callable[[str], None]] = []


def write_traceback() -> str:
    """Write the traceback of the current error to a file of its own and return its path."""
    with tempfile.NamedTemporaryFile("w", prefix="cgnn-error-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(traceback.format_exc())
    return file.name
