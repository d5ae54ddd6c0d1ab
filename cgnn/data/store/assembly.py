"""From the chunks of a journal to the finished file of prepared graphs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cgnn.data.store.chunks import ABSENT, ODD, PACKED
from cgnn.data.store.journal import Frame, Journal
from cgnn.data.store.layout import BLOCK, ENTRIES, digest, header_bytes, places_of
from cgnn.files import replacing
from cgnn.graph.fields import FIELDS

_LEVELS = ("atom", "edge", "record")


class _Sealed:
    """Writes bytes and keeps the checksum of each block of them."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._open = bytearray()
        self.checksums = bytearray()

    def write(self, content: memoryview) -> None:
        self._handle.write(content)
        if self._open:
            room = BLOCK - len(self._open)
            self._open += content[:room]
            content = content[room:]
            if len(self._open) < BLOCK:
                return
            self.close()
        whole = len(content) - len(content) % BLOCK
        for start in range(0, whole, BLOCK):
            self.checksums += digest(content[start : start + BLOCK])
        self._open += content[whole:]

    def close(self) -> None:
        if self._open:
            self.checksums += digest(bytes(self._open))
            self._open.clear()


def assemble(path: Path, metadata: dict[str, str], journal: Journal) -> None:
    """Write the finished file of the chunks in a journal."""
    columns = list(dict.fromkeys(name for frame in journal.frames for name in frame.columns))
    aside = [asdict(note.crystal) for note in journal.skipped()]
    texts = {"column_names": json.dumps(columns).encode(), "set_aside": json.dumps(aside).encode()}
    places = places_of(_lengths(journal, len(columns), texts))
    metadata = {**metadata, "columns": str(min(len(columns), PACKED)), "table": "0" * 64}
    with replacing(path) as temporary, open(temporary, "wb") as handle:
        handle.write(header_bytes(metadata, places))
        sealed = _Sealed(handle)
        for name in places:
            if name in texts:
                sealed.write(memoryview(texts[name]))
            elif name != "checksums":
                for part in _pieces(name, journal, columns[:PACKED]):
                    sealed.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        sealed.close()
        handle.write(sealed.checksums)
        handle.seek(0)
        handle.write(header_bytes({**metadata, "table": sha256(sealed.checksums).hexdigest()}, places))


def _lengths(journal: Journal, columns: int, texts: dict[str, bytes]) -> dict[str, int]:
    """Return the number of entries of each array."""
    counts = {level: sum(frame.counts[level] for frame in journal.frames) for level in ("crystal", "atom", "edge")}
    lines = {
        name: sum(stop - start for start, stop in (frame.places[name] for frame in journal.frames))
        for name in ("record", "id_lines", "source_lines")
    }
    packed = min(columns, PACKED) * counts["crystal"]
    return {
        **{f"{level}_ptr": counts["crystal"] + 1 for level in _LEVELS},
        **{name: counts[field.level] for name, field in FIELDS.items()},
        "column_values": packed,
        "column_kinds": packed,
        **lines,
        **{name: len(text) for name, text in texts.items()},
    }


def _pieces(name: str, journal: Journal, columns: Sequence[str]) -> Iterator[NDArray[Any]]:
    """Yield an array of the finished file piece by piece."""
    if name.endswith("_ptr"):
        yield from _pointers(journal, name.replace("_ptr", "_counts"))
    elif name == "column_values":
        yield from _columns(journal, columns, "values", np.dtype(ENTRIES[name][0]), np.nan, np.nan)
    elif name == "column_kinds":
        yield from _columns(journal, columns, "kinds", np.dtype(ENTRIES[name][0]), ABSENT, ODD)
    else:
        yield from (part for _, part in journal.parts(name))


def _pointers(journal: Journal, counts: str) -> Iterator[NDArray[np.int64]]:
    last = np.zeros(1, dtype=np.int64)
    yield last
    for _, part in journal.parts(counts):
        ends = last[-1] + np.cumsum(np.frombuffer(part.tobytes(), dtype=np.int64))
        yield ends
        last = ends if len(ends) else last


def _columns(
    journal: Journal, columns: Sequence[str], part: str, dtype: np.dtype[Any], absent: float, unpacked: float
) -> Iterator[NDArray[Any]]:
    """Yield column after column; in each, chunk after chunk."""
    rows = [{name: row for row, name in enumerate(frame.columns)} for frame in journal.frames]
    for name in columns:
        for (frame, content), known in zip(journal.parts(part), rows, strict=True):
            yield _column(frame, content, known.get(name), dtype, absent, unpacked)


def _column(
    frame: Frame, content: NDArray[np.uint8], row: int | None, dtype: np.dtype[Any], absent: float, unpacked: float
) -> NDArray[Any]:
    count = frame.counts["crystal"]
    size = count * dtype.itemsize
    if row is not None and row < PACKED:
        return content[row * size : (row + 1) * size]
    return np.full(count, absent if row is None else unpacked, dtype=dtype)
