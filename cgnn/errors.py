"""What can go wrong, and choosing an entry of a table by its name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class CgnnError(Exception):
    """A problem the user can act on: shown as one message, without a traceback."""


class ConfigError(CgnnError):
    """A setting is unknown, of the wrong type, or does not fit another one."""


class DataError(CgnnError):
    """A file as a whole can't be used."""


class CheckpointError(CgnnError):
    """A stored model or training state can't be used."""


class NumericsError(CgnnError):
    """A loss or gradient became NaN or infinite."""


class WorkerError(CgnnError):
    """Worker processes can't be used."""


class MissingPackageError(CgnnError):
    """An optional package is not installed."""


class CrystalError(CgnnError):
    """One crystal can't be used; it is set aside and the rest goes on.

    Args:
        code: Short machine-readable reason, such as ``"overlap"``.
        reason: One sentence for people.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[CrystalError], tuple[str, str]]:
        return CrystalError, (self.code, self.reason)  # the way between processes


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """Long work was asked to stop by a signal and has saved its state.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the entry of ``known`` spelt most like ``name``, or None if none is close."""
    by_lower = {entry.lower(): entry for entry in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """Return the sentence that says ``name`` is no known ``what`` and what to write instead."""
    known = list(known)
    guess = nearest(name, known)
    hint = f"; did you mean {guess!r}?" if guess else ""
    return f"unknown {what} {name!r}{hint} (known: {', '.join(known) or 'none'})"


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry of a table by its name.

    Args:
        table: The choices by name.
        name: The wanted one.
        what: What the table holds, for the message, such as ``"pooling"``.

    Raises:
        ConfigError: No such name; the message lists the names and the nearest spelling.
    """
    try:
        return table[name]
    except KeyError:
        raise ConfigError(unknown(name, table, what)) from None
