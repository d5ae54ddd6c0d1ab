"""What identifies an input: the SHA-256 of its names and contents, remembered while the files stay as they are."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson

from cgnn.errors import DataError
from cgnn.files import write_json

WORTH_NOTING = 1 << 20
"""Bytes of an input from which on its key is remembered; less is read in no time."""

SETTLED = 2_000_000_000
"""A file changed less than so many nanoseconds ago may change again without another time stamp."""


def content_key(path: str | Path, notes: str | Path | None = None) -> str:
    """Return the SHA-256 of a file's name and content, or of all files below a folder.

    The names belong to it because ids may come from them.

    Args:
        path: The file or folder.
        notes: Folder in which to remember the key; it is then found again without reading the files while
            their names, sizes, times of change and inodes stay the same.

    Raises:
        DataError: There is no such file or folder, or one can't be read.
    """
    path = Path(path)
    try:
        files = sorted(_files(path)) if path.is_dir() else [(path.name, str(path), path.stat())]
        now = time.time_ns()
        size = sum(status.st_size for _, _, status in files)
        if notes is None or size < WORTH_NOTING:
            return _digest(files)
        note = Path(notes) / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
        state = _state(files)
        known = _read(note)
        if known.get("state") == state:
            return known["key"]
        key = _digest(files)
        if now - max(max(status.st_mtime_ns, status.st_ctime_ns) for _, _, status in files) > SETTLED:
            with suppress(DataError):  # such as a full disk: then it is read again the next time
                write_json(note, {"path": os.fsdecode(path.resolve()), "state": state, "key": key})
        return key
    except OSError as error:
        raise DataError(f"{path}: could not be read: {error.strerror}") from None


Entry = tuple[str, str, os.stat_result]
"""Name below the folder, path, and what the system says of the file."""


def _files(folder: Path) -> Iterator[Entry]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with suppress(FileNotFoundError):  # a link to nothing
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    yield os.path.relpath(path, folder), path, status


def _digest(files: list[Entry]) -> str:
    digest = hashlib.sha256()
    for name, path, status in files:
        digest.update(f"{name}\n{status.st_size}\n".encode("utf-8", "surrogateescape"))
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _state(files: list[Entry]) -> str:
    digest = hashlib.sha256()
    for name, _, status in files:
        numbers = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
        digest.update(f"{name}\n{numbers}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read(note: Path) -> dict[str, str]:
    try:
        content = orjson.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(content, dict) and all(isinstance(content.get(name), str) for name in ("state", "key"))
    return content if whole else {}
