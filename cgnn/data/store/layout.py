"""How a file of prepared graphs is laid out: the arrays, the header, and the checksums.

The file is in safetensors format: flat arrays of all crystals one after another, with pointers to where each
crystal starts. The bytes after the header are cut into blocks of 64 KiB; the SHA-256 of each (its first 16 bytes)
stands in the last array, ``checksums``. The header, which has a fixed small size, holds the checksum of that
array and one of itself. So opening checks a few KiB, whatever the size of the set, and each block is checked
when it is first used. Blocks are small because crystals are drawn at random: a batch should not have to read
much more than itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from cgnn.errors import DataError
from cgnn.graph.fields import FIELDS

FORMAT = "cgnn-graphs-2"
BLOCK = 1 << 16
DIGEST = 16
"""Bytes of a block's checksum that are kept."""

_MAX_HEADER = 1 << 20
_UNSIGNED = "0" * 64
"""Stands for the header's checksum while it is made."""

DTYPES = {"float64": "F64", "int64": "I64", "int32": "I32", "int16": "I16", "uint8": "U8"}
"""numpy's name of a type -> that of safetensors."""

TEXTS = ("record", "id_lines", "source_lines", "column_names", "set_aside")
"""Arrays of text (UTF-8 or JSON)."""

_ENTRIES: dict[str, tuple[str, tuple[int, ...]]] = {
    "atom_ptr": ("int64", ()),
    "edge_ptr": ("int64", ()),
    "record_ptr": ("int64", ()),
    **{name: (field.stored, field.shape) for name, field in FIELDS.items()},
    "column_values": ("float64", ()),
    "column_kinds": ("uint8", ()),
    **dict.fromkeys(TEXTS, ("uint8", ())),
    "checksums": ("uint8", (DIGEST,)),
}
"""Array -> (dtype, shape of one entry). ``record`` holds each crystal's id, source and values as JSON text."""

ENTRIES = dict(
    # wide types first, so that all are aligned; the checksums of all others stand last
    sorted(_ENTRIES.items(), key=lambda entry: (entry[0] == "checksums", -np.dtype(entry[1][0]).itemsize))
)


@dataclass(frozen=True)
class Place:
    """Where an array lies.

    Args:
        dtype: numpy's name of its type.
        shape: Its shape.
        start: First byte, counted from the end of the header.
        stop: Byte after the last one.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def places_of(lengths: Mapping[str, int]) -> dict[str, Place]:
    """Return where the arrays lie in a file.

    Args:
        lengths: Array -> number of entries; that of ``checksums`` follows.
    """
    places: dict[str, Place] = {}
    end = 0
    for name, (dtype, entry) in ENTRIES.items():
        length = -(-end // BLOCK) if name == "checksums" else lengths[name]
        size = length * math.prod(entry) * np.dtype(dtype).itemsize
        places[name] = Place(dtype, (length, *entry), end, end + size)
        end += size
    return places


def header_bytes(metadata: Mapping[str, str], places: Mapping[str, Place]) -> bytes:
    """Return the header with its length before it and its checksum in it; the size is the same for all checksums."""
    arrays = {
        name: {"dtype": DTYPES[place.dtype], "shape": place.shape, "data_offsets": [place.start, place.stop]}
        for name, place in places.items()
    }
    text = orjson.dumps({"__metadata__": {**metadata, "checksum": _UNSIGNED}, **arrays})
    text += b" " * (-len(text) % 8)
    text = text.replace(_UNSIGNED.encode(), sha256(text).hexdigest().encode(), 1)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> tuple[dict[str, str], dict[str, Place], int]:
    """Return the metadata, where the arrays lie, and the size of the header.

    Raises:
        DataError: It can't be read, is damaged or of another version, or the file does not end where it should.
    """
    try:
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise ValueError("length of the header")
            text = handle.read(length)
            size = os.fstat(handle.fileno()).st_size
        header = orjson.loads(text)
        metadata = header.pop("__metadata__", None)
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise DataError(f"{path}: not a file of prepared graphs of this version ({FORMAT})")
        _check_header(text, metadata["checksum"])
        places = {name: _place(name, header[name]) for name in ENTRIES}
        if size != 8 + length + places["checksums"].stop:
            raise ValueError(f"{size} bytes, expected {8 + length + places['checksums'].stop}")
    except OSError as error:
        raise DataError(f"{path}: could not be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: damaged: {error}") from None
    return metadata, places, 8 + length


def digest(block: bytes | memoryview) -> bytes:
    """Return the checksum of a block."""
    return sha256(block).digest()[:DIGEST]


def _check_header(text: bytes, checksum: str) -> None:
    if len(checksum) != len(_UNSIGNED):
        raise ValueError("checksum of the header")
    if sha256(text.replace(checksum.encode(), _UNSIGNED.encode(), 1)).hexdigest() != checksum:
        raise ValueError("checksum of the header differs")


def _place(name: str, entry: Mapping[str, Any]) -> Place:
    dtype = ENTRIES[name][0]
    if entry["dtype"] != DTYPES[dtype]:
        raise ValueError(f"array {name!r} has another type")
    return Place(dtype, tuple(entry["shape"]), *entry["data_offsets"])
