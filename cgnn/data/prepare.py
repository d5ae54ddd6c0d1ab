"""From an input to its prepared graphs: built once, found again by content, opened without reading them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from cgnn.config import DataConfig, GraphConfig
from cgnn.data.engines import AUTO
from cgnn.data.items import Block, SetAside
from cgnn.data.records import blocks
from cgnn.data.store import GraphStore, StoreWriter, is_unfinished
from cgnn.data.store.chunks import PackedChunk, Packer
from cgnn.data.store.content import content_key
from cgnn.data.store.layout import FORMAT
from cgnn.errors import ConfigError, DataError
from cgnn.graph.build import fingerprint

SUFFIX = ".graphs"
"""A file of prepared graphs; it may stand for the input it was made from."""

Watch = Callable[[Iterable[Any]], Iterable[Any]]
"""Passes things on while it counts them, one for each crystal."""

Engine = Callable[[Callable[[Block], PackedChunk], Iterable[Block]], Iterable[PackedChunk]]
"""Applies a function to blocks and gives the results in their order, as ``map`` does."""


def prepare(data: DataConfig, graph: GraphConfig, watch: Watch | None = None, engine: Engine = AUTO) -> GraphStore:
    """Return the prepared graphs of a file or folder, built once and found again by content.

    Args:
        data: Path, format and columns; a path ending in ``.graphs`` is opened as it is. Several paths are prepared
            each, then joined (`cgnn.data.merge.Merged`).
        graph: How neighbours are found.
        watch: Wraps the stream of crystals to show progress, such as ``tqdm``.
        engine: Where the graphs are built; by default in this process and, where that lasts, in workers.

    Raises:
        ConfigError: A file of prepared graphs was made with other graph settings; names them.
        DataError: The file as a whole can't be read, or no crystal in it can be used.
    """
    if not isinstance(data.path, str):
        each = [prepare(data.model_copy(update={"path": path}), graph, watch, engine) for path in data.path]
        return each[0] if len(each) == 1 else _joined(each, data, graph)
    if is_prepared(data.path):
        return open_prepared(data.path, graph)
    # Opened before the key is made: the reader has the better words for a path that is wrong.
    blocks(data.path, data.format, data.id_column, data.structure_column)
    key = store_key(data, graph)
    path = cache_folder(data) / f"{key}{SUFFIX}"

    def rebuild() -> None:
        build(path, data, graph, watch, engine, key)

    return _found_or_built(path, key, rebuild)


def _joined(stores: list[GraphStore], data: DataConfig, graph: GraphConfig) -> GraphStore:
    """Return the prepared graphs of several files as those of one; no graph is built again."""
    from cgnn.data.merge import Merged

    names = _names(data.paths)
    content = [FORMAT, "joined", *(f"{name} {store.key}" for name, store in zip(names, stores, strict=True))]
    key = hashlib.sha256("\n".join(content).encode()).hexdigest()
    path = cache_folder(data) / f"{key}{SUFFIX}"
    settings = orjson.dumps(graph.model_dump(mode="json")).decode()

    def rebuild() -> None:
        with StoreWriter(path, key, settings, resume=True) as writer:
            if _is_whole(path, key):
                writer.cancel()
                return
            for chunk in islice(Merged(stores, names).chunks(), writer.done_chunks, None):
                writer.add_chunk(chunk)

    return _found_or_built(path, key, rebuild)


def _found_or_built(path: Path, key: str, rebuild: Callable[[], None]) -> GraphStore:
    if path.exists():
        if is_unfinished(path) and os.access(path.parent, os.W_OK):
            rebuild()  # finds it whole, and tidies up
        try:
            return _opened(path, key, rebuild)
        except DataError as error:
            warnings.warn(f"{error}; it is built again", stacklevel=3)
    rebuild()
    return _opened(path, key, rebuild)


def _names(paths: Sequence[str]) -> list[str]:
    """Return the files' names without suffixes, and where two are the same, with a number."""
    stems = [Path(path).expanduser().resolve().name.partition(".")[0] for path in paths]
    return [f"{stem}-{place + 1}" if stems.count(stem) > 1 else stem for place, stem in enumerate(stems)]


def build(
    path: str | Path,
    data: DataConfig,
    graph: GraphConfig,
    watch: Watch | None = None,
    engine: Engine = map,
    key: str | None = None,
) -> None:
    """Write the prepared graphs of a file or folder; goes on where an interrupted call has stopped.

    Args:
        path: The file to write.
        data: As for `prepare`, with one path, and so are the others.
        graph: How neighbours are found.
        watch: Wraps the stream of crystals.
        engine: Where the graphs are built.
        key: What the file is made from, if it is known already (`store_key`).

    Raises:
        DataError: As for `prepare`, or the file can't be written.
    """
    path = Path(path)
    assert isinstance(data.path, str)
    # Opened before the key is made: the reader has the better words for a path that is wrong.
    source = blocks(data.path, data.format, data.id_column, data.structure_column)
    key = key or store_key(data, graph)
    settings = orjson.dumps(graph.model_dump(mode="json")).decode()
    with StoreWriter(path, key, settings, resume=True) as writer:
        if _is_whole(path, key):  # another process built it while this one waited
            writer.cancel()
            return
        chunks = engine(Packer(graph), islice(source, writer.done_chunks, None))
        items = _written(writer, chunks)
        deque(watch(items) if watch else items, maxlen=0)
        if not writer.used:
            raise DataError(_nothing_usable(data.path, list(writer.set_aside())))


def is_prepared(path: str | Path) -> bool:
    """Return whether a path is that of a file of prepared graphs."""
    return Path(path).suffix == SUFFIX and not Path(path).expanduser().is_dir()


def open_prepared(path: str | Path, graph: GraphConfig | None = None) -> GraphStore:
    """Open a file of prepared graphs without what it was made from.

    Args:
        path: The file.
        graph: The settings that it must have been made with, if any.

    Raises:
        ConfigError: It was made with other settings; names them.
        DataError: It can't be read, is damaged or of another version.
    """
    store = GraphStore(Path(path).expanduser())
    found = orjson.loads(store.settings)
    wanted = {} if graph is None else graph.model_dump(mode="json")
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    if differing:
        pairs = ", ".join(f"graph.{name} is {found.get(name)!r} there, {wanted[name]!r} here" for name in differing)
        raise ConfigError(f"{path}: was prepared with other graph settings: {pairs}; use these, or prepare it again")
    return store


def cache_folder(data: DataConfig) -> Path:
    """Return the folder of prepared graphs: the setting, ``$CGNN_CACHE``, or ``~/.cache/cgnn``."""
    return Path(data.cache or os.environ.get("CGNN_CACHE") or Path.home() / ".cache" / "cgnn")


def store_key(data: DataConfig, graph: GraphConfig) -> str:
    """Return the key of prepared graphs: SHA-256 of the content read, how it is read, and the settings.

    Raises:
        DataError: There is no such file or folder.
    """
    assert isinstance(data.path, str)
    reading = orjson.dumps([FORMAT, data.format, data.id_column, data.structure_column]).decode()
    parts = [content_key(Path(data.path).expanduser(), cache_folder(data) / "inputs"), reading, fingerprint(graph)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _written(writer: StoreWriter, chunks: Iterable[PackedChunk]) -> Iterator[int]:
    """Write chunks and yield once for each crystal, those of an interrupted call included."""
    yield from range(writer.done_items)
    for chunk in chunks:
        writer.add_chunk(chunk)
        yield from range(len(chunk))


def _opened(path: Path, key: str, rebuild: Callable[[], None]) -> GraphStore:
    store = GraphStore(path, rebuild)
    if store.key != key:
        raise DataError(f"{path}: holds the graphs of something else")
    return store


def _is_whole(path: Path, key: str) -> bool:
    try:
        store = GraphStore(path)
        store.verify_all()
    except DataError:
        return False
    return store.key == key


def _nothing_usable(path: str, set_aside: list[SetAside]) -> str:
    if not set_aside:
        return f"{path}: holds no crystals"
    first = set_aside[0]
    return (
        f"{path}: no crystal can be used ({len(set_aside)} set aside; "
        f"the first, {first.material_id or first.source}: {first.reason})"
    )
