"""Chunks: the prepared graphs of one piece of the input, packed so that they are cheap to send and to write.

A chunk is made where the work is done, in this process or another one, and handed to the writer of the store
(`cgnn.data.store.writer.StoreWriter.add_chunk`) in the order of the input. It depends on its piece of the input
alone: what repeats an earlier crystal is found by the writer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeGuard

import numpy as np
import orjson
from numpy.typing import NDArray

from cgnn.config import GraphConfig
from cgnn.data.items import Block, Item, Record, SetAside, Value
from cgnn.errors import CrystalError, DataError
from cgnn.graph.build import GraphBuilder
from cgnn.graph.fields import FIELDS, Arrays, validate

Ints = NDArray[np.int64]

ABSENT, MISSING, NUMBER, BOOLEAN, ODD = range(5)
"""What a crystal has in a column: no such key, null, a number, true or false, or what only its record tells."""

PACKED = 256
"""Columns of values that are packed; a file with more of them than that has keys of another sort."""

_EXACT = 1 << 53
"""Whole numbers up to this one are the same as float64."""


class Column(NamedTuple):
    """One column of values of the crystals of a chunk or a store.

    Args:
        kinds: ``ABSENT``, ``MISSING``, ``NUMBER``, ``BOOLEAN`` or ``ODD`` (n,), uint8.
        values: The numbers (n,), float64; true is 1, ``nan`` stands where there is none.
    """

    kinds: NDArray[np.uint8]
    values: NDArray[np.float64]


class Skipped(NamedTuple):
    """A crystal of a chunk that could not be used.

    Args:
        position: Its place among all items of the chunk, from 0.
        crystal: What is said of it.
        digest: Digest of its record; empty where none could be read.
    """

    position: int
    crystal: SetAside
    digest: bytes


@dataclass(frozen=True, eq=False)
class PackedChunk:
    """Graphs, records and set-aside crystals of one piece of the input.

    Args:
        fields: Stored fields of the n crystals, one crystal after another.
        atoms: Number of atoms of each crystal (n,).
        edges: Number of edges of each crystal (n,).
        ids: Their ids.
        sources: Where they came from.
        digests: Digests of their records, 16 bytes each.
        texts: Id, source and values of each, as JSON.
        columns: The first 256 columns of values by name, in the order in which they appeared.
        unpacked: The names of further columns; their values stand in the records only.
        skipped: Crystals that could not be used, in their order.
    """

    fields: Arrays
    atoms: Ints
    edges: Ints
    ids: list[str]
    sources: list[str]
    digests: list[bytes]
    texts: list[bytes]
    columns: dict[str, Column]
    unpacked: list[str]
    skipped: list[Skipped]

    def __len__(self) -> int:
        """Return the number of items, used or not."""
        return len(self.ids) + len(self.skipped)

    def column(self, name: str) -> Column:
        """Return a column of values, whether the chunk has it or not."""
        if name in self.columns:
            return self.columns[name]
        kind = ODD if name in self.unpacked else ABSENT
        return Column(np.full(len(self.ids), kind, np.uint8), np.full(len(self.ids), np.nan))

    def keep(self, mask: NDArray[np.bool_], skipped: list[Skipped]) -> PackedChunk:
        """Return the chunk with the crystals of a mask (n,) and other set-aside ones."""
        spread = {"crystal": mask, "atom": np.repeat(mask, self.atoms), "edge": np.repeat(mask, self.edges)}
        rows = np.flatnonzero(mask).tolist()
        return replace(
            self,
            fields={name: self.fields[name][spread[field.level]] for name, field in FIELDS.items()},
            atoms=self.atoms[mask],
            edges=self.edges[mask],
            ids=[self.ids[row] for row in rows],
            sources=[self.sources[row] for row in rows],
            digests=[self.digests[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            columns={
                # a column that only crystals left out had is none
                name: Column(kinds[mask], values[mask])
                for name, (kinds, values) in self.columns.items()
                if kinds[mask].any()
            },
            skipped=skipped,
        )


Built = tuple[Item, Arrays | CrystalError]
"""An item with its graph, or with the reason why there is none; a `SetAside` comes with an empty graph."""


def build_each(items: Iterable[Item], builder: GraphBuilder) -> Iterator[Built]:
    """Yield each item with its graph or the reason why there is none."""
    for item in items:
        if isinstance(item, SetAside):
            yield item, {}
            continue
        try:
            yield item, builder.arrays(item.crystal)
        except CrystalError as error:
            yield item, error


@dataclass(frozen=True)
class Packer:
    """Makes the chunk of a block, in any process.

    Args:
        settings: How neighbours are found.
    """

    settings: GraphConfig

    def __call__(self, block: Block) -> PackedChunk:
        """Return the chunk."""
        return pack(build_each(block.items(), GraphBuilder(self.settings)))

    def join(self, chunks: Sequence[PackedChunk]) -> PackedChunk:
        """Return the chunk of a block of the chunks of its parts: a resumed build counts blocks by their chunks."""
        return join(chunks)


def pack(built: Iterable[Built]) -> PackedChunk:
    """Return the chunk of some items, such as `build_each` gives of a block.

    Raises:
        DataError: A graph is not whole; names the field.
    """
    records: list[Record] = []
    graphs: list[Arrays] = []
    skipped: list[Skipped] = []
    for position, (item, graph) in enumerate(built):
        if isinstance(item, SetAside):
            skipped.append(Skipped(position, item, b""))
        elif isinstance(graph, CrystalError):
            skipped.append(Skipped(position, _without_graph(item, graph), item.digest))
        else:
            records.append(item)
            graphs.append(graph)
    columns, unpacked = _columns([record.values for record in records])
    return PackedChunk(
        fields=_joined(graphs),
        atoms=np.array([len(graph["z"]) for graph in graphs], dtype=np.int64),
        edges=np.array([len(graph["source"]) for graph in graphs], dtype=np.int64),
        ids=[_line(record.material_id) for record in records],
        sources=[_line(record.source) for record in records],
        digests=[record.digest for record in records],
        texts=[_text(record) for record in records],
        columns=columns,
        unpacked=unpacked,
        skipped=skipped,
    )


def join(chunks: Sequence[PackedChunk]) -> PackedChunk:
    """Return one chunk of the items of several, one chunk after another."""
    names = list(dict.fromkeys(name for chunk in chunks for name in (*chunk.columns, *chunk.unpacked)))
    counts = np.cumsum([0, *(len(chunk) for chunk in chunks)]).tolist()
    return PackedChunk(
        fields={name: np.concatenate([chunk.fields[name] for chunk in chunks]) for name in FIELDS},
        atoms=np.concatenate([chunk.atoms for chunk in chunks]),
        edges=np.concatenate([chunk.edges for chunk in chunks]),
        ids=[entry for chunk in chunks for entry in chunk.ids],
        sources=[entry for chunk in chunks for entry in chunk.sources],
        digests=[entry for chunk in chunks for entry in chunk.digests],
        texts=[entry for chunk in chunks for entry in chunk.texts],
        columns={
            name: Column(*map(np.concatenate, zip(*(chunk.column(name) for chunk in chunks), strict=True)))
            for name in names[:PACKED]
        },
        unpacked=names[PACKED:],
        skipped=[
            note._replace(position=start + note.position)
            for start, chunk in zip(counts, chunks, strict=False)
            for note in chunk.skipped
        ],
    )


def _without_graph(record: Record, error: CrystalError) -> SetAside:
    return SetAside(record.material_id, record.source, "graph", error.code, error.reason)


def _joined(graphs: Sequence[Arrays]) -> Arrays:
    """Return the fields of crystals one after another, checked, so that what is read back can be trusted."""
    empty: Arrays = {name: np.empty((0, *field.shape), field.stored) for name, field in FIELDS.items()}
    try:
        fields: Arrays = {
            name: np.concatenate([empty[name], *(graph[name] for graph in graphs)], dtype=field.stored)
            for name, field in FIELDS.items()
        }
        is_sound = _is_sound(graphs, fields)
    except (KeyError, TypeError, ValueError):  # a field is missing, or of another type or shape
        is_sound = False
    if not is_sound:
        for graph in graphs:
            validate(graph)
        raise DataError("a graph holds fields that can't be stored")
    return fields


def _is_sound(graphs: Sequence[Arrays], fields: Arrays) -> bool:
    """Return whether `validate` would pass every crystal; all of them at once, as each alone costs what its graph did.

    Args:
        graphs: The crystals' own fields.
        fields: The same, one crystal after another.
    """
    lengths = {name: np.array([len(graph[name]) for graph in graphs], dtype=np.int64) for name in FIELDS}
    counts = {"crystal": np.ones(len(graphs), dtype=np.int64), "atom": lengths["z"], "edge": lengths["source"]}
    if not all(np.array_equal(lengths[name], counts[field.level]) for name, field in FIELDS.items()):
        return False
    crystal = np.repeat(np.arange(len(graphs)), counts["edge"])
    atoms = counts["atom"][crystal]
    ends = [(fields[name] >= 0) & (fields[name] < atoms) for name in ("source", "target")]
    is_sorted = (np.diff(fields["target"]) >= 0) | (np.diff(crystal) > 0)
    is_finite = [np.isfinite(fields[name]).all() for name in ("pos", "lattice")]
    return bool(ends[0].all() and ends[1].all() and is_sorted.all() and all(is_finite))


def _text(record: Record) -> bytes:
    content = [record.material_id, record.source, record.values]
    if all(_is_plain(value) for value in record.values.values()):
        try:
            return orjson.dumps(content)
        except TypeError:  # halves of surrogate pairs, keys that are no text
            pass
    return json.dumps(content).encode()


def _is_plain(value: Value) -> bool:
    """Return whether orjson writes the value as it is: it gives null for what is not finite."""
    return value is None or type(value) in (str, bool) or (_is_number(value) and -np.inf < value < np.inf)


def _is_number(value: Value) -> TypeGuard[float]:
    return type(value) is float or (type(value) is int and -_EXACT <= value <= _EXACT)


def _columns(records: Sequence[Mapping[str, Value]]) -> tuple[dict[str, Column], list[str]]:
    names = list(dict.fromkeys(name for record in records for name in record))
    packed, unpacked = names[:PACKED], names[PACKED:]
    kinds = {name: bytearray(len(records)) for name in packed}
    numbers = {name: [np.nan] * len(records) for name in packed}
    for row, record in enumerate(records):
        for name, value in record.items():
            if name not in kinds:
                continue
            if value is None:
                kinds[name][row] = MISSING
            elif _is_number(value) or isinstance(value, bool):
                kinds[name][row] = BOOLEAN if isinstance(value, bool) else NUMBER
                numbers[name][row] = float(value)
            else:
                kinds[name][row] = ODD
    return {name: Column(np.frombuffer(kinds[name], np.uint8), np.array(numbers[name])) for name in packed}, unpacked


def _line(text: str) -> str:
    if "\n" in text:
        raise DataError(f"{text[:60]!r} has more than one line")
    return text
