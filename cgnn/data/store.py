"""Prepared graphs: packed into one file, memory-mapped, checksummed, keyed by content and settings.

The file is in safetensors format: flat arrays of all crystals one after another, with pointers to where each
crystal starts. It is written by appending to one part per array, so memory does not grow with the set, and
read by memory map, so opening costs nothing until crystals are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cgnn.config import DataConfig, GraphConfig
from cgnn.data.records import Item, Record, SetAside, Value, read, without_duplicates
from cgnn.errors import CrystalError, DataError
from cgnn.files import replacing, writing
from cgnn.graph.build import GraphBuilder, fingerprint
from cgnn.graph.fields import FIELDS, Arrays, validate

FORMAT = "cgnn-graphs-1"
_DTYPES = {"float64": "F64", "int64": "I64", "int32": "I32", "int16": "I16", "uint8": "U8"}
_NUMPY = {tag: name for name, tag in _DTYPES.items()}

_ENTRIES: dict[str, tuple[str, tuple[int, ...]]] = {
    **{name: (field.stored, field.shape) for name, field in FIELDS.items()},
    "atom_ptr": ("int64", ()),
    "edge_ptr": ("int64", ()),
    "record_ptr": ("int64", ()),
    "record": ("uint8", ()),
}
"""Array -> (dtype, shape of one entry). ``record`` holds each crystal's id, source and values as JSON text."""


Watch = Callable[[Iterable[Item]], Iterable[Item]]


class GraphStore:
    """Prepared graphs of a data set, read from disk as they are used.

    Args:
        path: File written by `StoreWriter`.
        verify: Whether to compare the checksum of the whole file.

    Raises:
        DataError: The file is truncated, altered or of another version.
    """

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        self.path = Path(path)
        header, start = _read_header(self.path)
        self._metadata: dict[str, str] = header.pop("__metadata__", {})
        if not isinstance(self._metadata, dict) or self._metadata.get("format") != FORMAT:
            raise DataError(f"{path}: not a file of prepared graphs of this version ({FORMAT})")
        self.arrays = _map_arrays(self.path, header, start)
        if verify and _checksum(self.arrays, self._metadata) != self._metadata.get("checksum"):
            raise DataError(f"{path}: checksum differs: the file was altered or damaged")

    def __len__(self) -> int:
        return len(self.arrays["atom_ptr"]) - 1

    @property
    def key(self) -> str:
        """What the file was made from (`store_key`)."""
        return self._metadata["key"]

    @property
    def set_aside(self) -> list[SetAside]:
        """Crystals that could not be read or turned into graphs."""
        return [SetAside(**entry) for entry in json.loads(self._metadata["set_aside"])]

    def graph(self, index: int) -> Arrays:
        """Return the fields of one crystal."""
        bounds = {level: slice(*self.arrays[f"{level}_ptr"][index : index + 2]) for level in ("atom", "edge")}
        bounds["crystal"] = slice(index, index + 1)
        return {name: self.arrays[name][bounds[field.level]] for name, field in FIELDS.items()}

    def record(self, index: int) -> tuple[str, str, dict[str, Value]]:
        """Return id, source and values of one crystal."""
        start, stop = self.arrays["record_ptr"][index : index + 2]
        material_id, source, values = json.loads(self.arrays["record"][start:stop].tobytes())
        return material_id, source, values


class StoreWriter:
    """Writes a file of prepared graphs, crystal by crystal; use as a context.

    Args:
        path: The file; it appears when the context ends without an error.
        key: What it was made from (`store_key`).
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self._path = Path(path)
        self._key = key
        self._counts = {"atom": 0, "edge": 0, "record": 0}
        self._lengths = dict.fromkeys(_ENTRIES, 0)
        self._set_aside: list[SetAside] = []

    def __enter__(self) -> StoreWriter:
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self._path.name[:100]}.", dir=self._path.parent))
            self._parts: dict[str, BinaryIO] = {
                name: open(self._folder / name, "wb")  # noqa: SIM115 - closed in __exit__
                for name in _ENTRIES
            }
        for level in self._counts:
            self._append(f"{level}_ptr", np.zeros(1))
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            with writing(self._path):
                for part in self._parts.values():
                    part.close()
            if kind is None:
                self._assemble()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, record: Record, arrays: Arrays) -> None:
        """Append one crystal; its fields are checked, so that what is read back can be trusted."""
        validate(arrays)
        text = json.dumps([record.material_id, record.source, record.values]).encode()
        for name in FIELDS:
            self._append(name, arrays[name])
        self._append("record", np.frombuffer(text, dtype=np.uint8))
        sizes = {"atom": len(arrays["z"]), "edge": len(arrays["source"]), "record": len(text)}
        for level, size in sizes.items():
            self._counts[level] += size
            self._append(f"{level}_ptr", np.array([self._counts[level]]))

    def skip(self, crystal: SetAside) -> None:
        """Note a crystal that could not be used."""
        self._set_aside.append(crystal)

    def _append(self, name: str, values: NDArray[Any]) -> None:
        self._lengths[name] += len(values)
        with writing(self._path):
            self._parts[name].write(np.ascontiguousarray(values, dtype=_ENTRIES[name][0]).tobytes())

    def _assemble(self) -> None:
        header: dict[str, Any] = {}
        offset = 0
        for name, (dtype, shape) in sorted(_ENTRIES.items(), key=lambda e: -np.dtype(e[1][0]).itemsize):
            full = (self._lengths[name], *shape)
            size = int(np.prod(full)) * np.dtype(dtype).itemsize
            header[name] = {"dtype": _DTYPES[dtype], "shape": full, "data_offsets": [offset, offset + size]}
            offset += size
        metadata = {
            "format": FORMAT,
            "key": self._key,
            "set_aside": json.dumps([asdict(crystal) for crystal in self._set_aside]),
        }
        parts = {name: _map_part(self._folder / name, spec) for name, spec in header.items()}
        metadata["checksum"] = _checksum(parts, metadata)
        with replacing(self._path) as temporary, open(temporary, "wb") as handle:
            handle.write(_header_bytes({"__metadata__": metadata, **header}))
            for name in header:
                with open(self._folder / name, "rb") as part:
                    shutil.copyfileobj(part, handle, 1 << 20)


def prepare(data: DataConfig, graph: GraphConfig, watch: Watch | None = None) -> GraphStore:
    """Return the prepared graphs of a file or folder, built once and found again by content.

    Args:
        data: Path, format and columns.
        graph: How neighbours are found.
        watch: Wraps the stream of crystals to show progress, such as ``tqdm``.

    Raises:
        DataError: The file as a whole can't be read, or no crystal in it can be used.
    """
    # Opened before the key is made: the reader has the better words for a path that is wrong.
    stream = read(data.path, data.format, data.id_column, data.structure_column)
    key = store_key(data, graph)
    path = cache_folder(data) / f"{key}.safetensors"
    if path.exists():
        try:
            store = GraphStore(path)
            if store.key == key:
                return store
            raise DataError(f"{path}: holds the graphs of something else")
        except DataError as error:
            warnings.warn(f"{error}; it is built again", stacklevel=2)
    with StoreWriter(path, key) as writer:
        items = without_duplicates(stream)
        used = _fill(writer, watch(items) if watch else items, GraphBuilder(graph))
        if not used:
            raise DataError(_nothing_usable(data.path, writer._set_aside))
    return GraphStore(path)


def _fill(writer: StoreWriter, stream: Iterable[Item], builder: GraphBuilder) -> int:
    used = 0
    for item, arrays in build_graphs(stream, builder):
        if isinstance(item, SetAside):
            writer.skip(item)
        else:
            writer.add(item, arrays)
            used += 1
    return used


def build_graphs(stream: Iterable[Item], builder: GraphBuilder) -> Iterator[tuple[Item, Arrays]]:
    """Yield each record with its graph; a crystal that can't become one is set aside with the reason."""
    for item in stream:
        if isinstance(item, SetAside):
            yield item, {}
            continue
        try:
            yield item, builder.arrays(item.structure)
        except CrystalError as error:
            yield SetAside(item.material_id, item.source, "graph", error.code, error.reason), {}


def cache_folder(data: DataConfig) -> Path:
    """Return the folder of prepared graphs: the setting, ``$CGNN_CACHE``, or ``~/.cache/cgnn``."""
    return Path(data.cache or os.environ.get("CGNN_CACHE") or Path.home() / ".cache" / "cgnn")


def store_key(data: DataConfig, graph: GraphConfig) -> str:
    """Return the key of prepared graphs: SHA-256 of the content read, how it is read, and the settings.

    Raises:
        DataError: There is no such file or folder.
    """
    reading = json.dumps([FORMAT, data.format, data.id_column, data.structure_column])
    parts = [content_key(data.path), reading, fingerprint(graph)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def content_key(path: str | Path) -> str:
    """Return the SHA-256 of a file's name and content, or of all files below a folder.

    The names belong to it because ids may come from them.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
        for file in files:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            digest.update(f"{name}\n{file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    except OSError as error:
        raise DataError(f"{path}: could not be read: {error.strerror}") from None
    return digest.hexdigest()


def _nothing_usable(path: str, set_aside: list[SetAside]) -> str:
    if not set_aside:
        return f"{path}: holds no crystals"
    first = set_aside[0]
    return (
        f"{path}: no crystal can be used ({len(set_aside)} set aside; "
        f"the first, {first.material_id or first.source}: {first.reason})"
    )


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with open(path, "rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            if not 2 <= size <= min(path.stat().st_size, 1 << 30):
                raise ValueError("header length")
            header = json.loads(handle.read(size))
        if not isinstance(header, dict):
            raise TypeError("header is no mapping")
    except OSError as error:
        raise DataError(f"{path}: could not be read: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged: {error}") from None
    return header, 8 + size


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _map_arrays(path: Path, header: Mapping[str, Any], start: int) -> Arrays:
    try:
        arrays = {}
        for name, (dtype, entry) in _ENTRIES.items():
            spec = header[name]
            if _NUMPY[spec["dtype"]] != dtype or tuple(spec["shape"][1:]) != entry:
                raise ValueError(f"array {name!r} has another type")
            arrays[name] = _map(path, dtype, tuple(spec["shape"]), start + spec["data_offsets"][0])
        return arrays
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: damaged or truncated: {error}") from None


def _map_part(path: Path, spec: Mapping[str, Any]) -> NDArray[Any]:
    return _map(path, _NUMPY[spec["dtype"]], tuple(spec["shape"]), 0)


def _map(path: Path, dtype: str, shape: tuple[int, ...], offset: int) -> NDArray[Any]:
    if not np.prod(shape):
        return np.empty(shape, dtype=dtype)
    # A plain view of the map: indexing np.memmap itself costs a Python call per slice.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape, offset=offset))


def _checksum(arrays: Arrays, metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    rest = {key: value for key, value in metadata.items() if key != "checksum"}
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()
