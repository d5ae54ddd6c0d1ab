"""Reading text and writing files so that a crash never leaves half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cgnn.errors import DataError


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn a failure to write into an error for people.

    Raises:
        DataError: The file can't be written (full disk, no permission); names path and cause.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error.strerror or error}") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``; on success it becomes ``path``.

    The new content is synced, renamed over the old one, and the folder is synced, so after a crash at any
    moment ``path`` is the old whole file or the new whole file. On an error the old file stays.

    Raises:
        DataError: The file can't be written (full disk, no permission); names path and cause.
    """
    path = Path(path)
    temporary = path.with_name(f"{_hidden(path)}{secrets.token_hex(6)}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # such as a folder that is none
            temporary.unlink()


def temporaries(path: Path) -> list[Path]:
    """Return the temporary files that writers of ``path`` have now, or had when they were killed."""
    return [file for file in path.parent.glob(".*.tmp") if file.name.startswith(_hidden(path))]


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a whole UTF-8 text file, all or nothing."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write a value as indented JSON, all or nothing."""
    import orjson

    write_bytes(path, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _hidden(path: Path) -> str:
    return f".{path.name[:100]}."


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(output: Path, source: Path) -> None:
    """Check that a file to write is not the one that is read.

    Raises:
        DataError: It is.
    """
    if output.resolve() == source.resolve():
        raise DataError(f"{output}: is the input and would be replaced; choose another --output")
