"""A split: the ids of each part, and its file."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cgnn.errors import DataError, unknown
from cgnn.files import write_json

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """The ids of each part, sorted, and how they were found.

    Args:
        train: Ids to learn from.
        val: Ids that choose the best epoch.
        test: Ids that are only evaluated at the end.
        method: The entry of `SPLITS` that made it.
        seed: The seed it was made with.
        left_out: Number of crystals in no part (only where the parts come from a file or a column).
    """

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    method: str = ""
    seed: int = 0
    left_out: int = 0

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, all or nothing; it can be the ``file`` of another run."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read a split: JSON with lists of ids under ``train`` and, if wanted, ``val`` and ``test``.

        Raises:
            DataError: No such file, no JSON, an unknown key, an id twice, or nothing to train on.
        """
        content = _read(Path(path))
        parts = {part: _ids(content.pop(part, []), f"{path}: {part}") for part in PARTS}
        _check_once(parts, path)
        if not parts["train"]:
            raise DataError(f"{path}: expected ids under 'train', found none")
        method, seed, left_out = (content.pop(key, default) for key, default in _NOTES.items())
        if not isinstance(method, str) or not (_is_count(seed) and _is_count(left_out)):
            raise DataError(f"{path}: 'method' must be text, 'seed' and 'left_out' whole numbers from 0")
        return cls(**parts, method=method, seed=seed, left_out=left_out)


_NOTES: dict[str, Any] = {"method": "", "seed": 0, "left_out": 0}


def _read(path: Path) -> dict[str, Any]:
    import orjson

    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: could not be read: {error.strerror or error}") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected lists of ids under 'train', 'val' and 'test'")
    known = [field.name for field in fields(Split)]
    for key in content:
        if key not in known:
            raise DataError(f"{path}: {unknown(key, known, 'key')}")
    return content


def _ids(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise DataError(f"{where}: expected a list of ids (texts)")
    return tuple(sorted(value))


def _check_once(parts: dict[str, tuple[str, ...]], path: str | Path) -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for part, names in parts.items():
        for name in names:
            places[name].append(part)
    twice = [f"{name!r} ({' and '.join(where)})" for name, where in places.items() if len(where) > 1]
    if twice:
        raise DataError(f"{path}: {len(twice)} ids stand there twice, such as {twice[0]}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
