"""Files, plain or gzip, as bytes and lines of bounded size."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cgnn.errors import CrystalError, DataError

RECORD_BYTES = 16 * 2**20
"""Largest record (line, JSON element, table row). The largest accepted crystal needs about 4 MB."""

CHUNK = 2**20
_SKIP_BYTES = 64 * RECORD_BYTES
"""Largest line that is passed over; one that goes on further is a decompression bomb."""
READ_ERRORS = (OSError, EOFError, zlib.error)
_PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"\x28\xb5\x2f\xfd": "zstd"}

_MAGICS = tuple(magic for magic in (*_PACKED, b"\x1f\x8b"))


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a text file, gzip or plain, for reading bytes.

    Raises:
        DataError: The file can't be opened, is empty, packed in another way, a web page, or UTF-16.
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115 - closed below, together with what wraps it
    except OSError as error:
        raise DataError(f"{path}: could not be opened: {error.strerror or error}") from None
    with raw, _unpacked(raw, path) as handle:
        yield handle


def plain_content(path: Path, size: int) -> bytes | None:
    """Return up to ``size`` bytes of a file that begins like a text; ``None`` where `opened` has to look closer."""
    try:
        with open(path, "rb", buffering=0) as raw:
            content = raw.read(min(size, os.fstat(raw.fileno()).st_size + 1))
    except OSError:
        return None
    start = content[:512].lstrip()
    is_text = start.isascii() and start[:1] not in (b"", b"<") and not content.startswith(_MAGICS)
    return content if is_text and not path.name.lower().endswith(".gz") else None


def _unpacked(raw: io.BufferedReader, path: Path) -> Any:
    try:
        start = raw.peek(8)[:8]
        _refuse_packed(start, path)
        is_gzip = start.startswith(b"\x1f\x8b")
        handle = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        _refuse_foreign(handle.peek(512)[:512], path)
    except READ_ERRORS as error:
        raise DataError(f"{path}: could not be read: {error}") from None
    return handle


def _refuse_packed(start: bytes, path: Path) -> None:
    if path.suffix.lower() == ".gz" and start and not start.startswith(b"\x1f\x8b"):
        raise DataError(f"{path}: named .gz but is not a gzip file; rename it or download it again")
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            raise DataError(f"{path}: is a {name} archive; unpack it first (only gzip is read directly)")


def _refuse_foreign(start: bytes, path: Path) -> None:
    if not start.strip():
        raise DataError(f"{path}: the file is empty; expected crystals")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the text is UTF-16; save it as UTF-8")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{path}: is a web page, not data; download the file itself again")


class Lines:
    """The lines of a file; a line that can't be had raises `CrystalError`, and iteration may go on."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._ended = False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        try:
            line = self._handle.readline(RECORD_BYTES + 1)
            if len(line) > RECORD_BYTES:
                self._skip_line()
        except READ_ERRORS as error:
            self._ended = True
            raise cut_off(error) from None
        if not line:
            raise StopIteration
        if len(line) > RECORD_BYTES:
            raise too_large()
        # an id with an undecodable byte is refused by the sign that replaces it; elsewhere it does no harm
        return line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")

    def _skip_line(self) -> None:
        for _ in range(_SKIP_BYTES // CHUNK):
            if self._handle.readline(CHUNK)[-1:] in (b"\n", b""):
                return
        self._ended = True


class PutBack:
    """A file of which some bytes, and perhaps the error that came behind them, were read already.

    Args:
        held: What was read.
        handle: Gives what follows.
        error: What ``handle`` raised.
    """

    def __init__(self, held: bytes, handle: Any, error: Exception | None = None) -> None:
        self._held = held
        self._pos = 0
        self._handle = handle
        self._error = error

    def read1(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        if self._pos < len(self._held):
            return self._take(self._pos + size)
        self._fail()
        return bytes(self._handle.read1(size))

    def readline(self, size: int) -> bytes:
        """Return the rest of the line, at most ``size`` bytes of it."""
        end = self._held.find(b"\n", self._pos, self._pos + size) + 1
        line = self._take(end or self._pos + size)
        if end or len(line) == size:
            return line
        self._fail()
        return line + bytes(self._handle.readline(size - len(line)))

    def _take(self, end: int) -> bytes:
        part = self._held[self._pos : end]
        self._pos += len(part)
        return part

    def _fail(self) -> None:
        if self._error:
            raise self._error


def read_up_to(handle: Any, size: int) -> bytes:
    """Read up to ``size`` bytes; what comes before damage is kept, the damage is met at the next call."""
    parts: list[bytes] = []
    while size > 0:
        try:
            part = handle.read1(size)
        except READ_ERRORS:
            if parts:
                break
            raise
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def too_large() -> CrystalError:
    """Return the error for a record of more than ``RECORD_BYTES``."""
    return CrystalError("too_large", f"the record is larger than {RECORD_BYTES // 2**20} MB")


def cut_off(error: BaseException) -> CrystalError:
    """Return the error for a file that ends or breaks in the middle."""
    return CrystalError("truncated", f"the file can't be read beyond this record ({str(error)[:120]})")
