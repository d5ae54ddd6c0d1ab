"""Writing prepared graphs: chunks into a journal, and the journal into the finished file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cgnn import __version__
from cgnn.data.items import Record, SetAside
from cgnn.data.repeats import Repeats
from cgnn.data.store.assembly import assemble
from cgnn.data.store.chunks import Built, PackedChunk, Skipped, pack
from cgnn.data.store.journal import Journal
from cgnn.data.store.layout import FORMAT
from cgnn.errors import Stopped
from cgnn.files import temporaries, writing
from cgnn.graph.fields import Arrays

CHUNK = 256
"""Crystals of a chunk where they come one by one."""


def is_unfinished(path: Path) -> bool:
    """Return whether writers of a file are at work, or were killed before they had tidied up."""
    return _journal_path(path).exists() or bool(temporaries(path))


class StoreWriter:
    """Writes a file of prepared graphs; use as a context.

    The file appears when the context ends without an error. What was written before the process was killed
    or interrupted stays beside the file and is found again with ``resume``; after an error nothing stays.
    While one writer is at work, others of the same file wait for it.

    Args:
        path: The file.
        key: What it is made from (`cgnn.data.prepare.store_key`).
        settings: The graph settings as JSON.
        resume: Whether to go on with what a killed writer of the same key left: then give only the chunks
            after the first ``done_chunks``.
    """

    def __init__(self, path: str | Path, key: str, settings: str = "{}", resume: bool = False) -> None:
        self._path = Path(path)
        self._metadata = {"format": FORMAT, "key": key, "settings": settings}
        # where the input is cut into chunks is a matter of this package's version
        heading = json.dumps([FORMAT, __version__, key])
        self._journal = Journal(_journal_path(self._path), heading, resume)
        self._repeats = Repeats()
        self._waiting: list[Built] = []
        self._is_cancelled = False

    def __enter__(self) -> StoreWriter:
        self._journal.__enter__()
        if self._journal.is_shared:  # then no other writer is at work
            for remnant in temporaries(self._path):
                with writing(remnant):
                    remnant.unlink(missing_ok=True)
        for ids, sources, digests in self._journal.names():
            for entry in zip(ids, sources, digests, strict=True):
                self._repeats.note(*entry)
        for note in self._journal.skipped():
            if note.digest:
                self._repeats.note(note.crystal.material_id, note.crystal.source, note.digest)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        is_kept = kind is not None and (not issubclass(kind, Exception) or issubclass(kind, Stopped))
        try:
            if kind is None and not self._is_cancelled:
                self._flush()
                assemble(self._path, self._metadata, self._journal)
        except BaseException as error:
            is_kept = not isinstance(error, Exception)
            raise
        finally:
            if not is_kept:
                self._journal.discard()
            self._journal.__exit__()

    @property
    def done_chunks(self) -> int:
        """Chunks that are written."""
        return len(self._journal.frames)

    @property
    def done_items(self) -> int:
        """Crystals of these chunks, used or set aside."""
        return sum(frame.counts["item"] for frame in self._journal.frames)

    @property
    def used(self) -> int:
        """Crystals that have a graph."""
        return sum(frame.counts["crystal"] for frame in self._journal.frames)

    def set_aside(self) -> Iterator[SetAside]:
        """Yield the crystals that could not be used."""
        return (note.crystal for note in self._journal.skipped())

    def add_chunk(self, chunk: PackedChunk) -> None:
        """Append a chunk; what repeats the id of an earlier crystal is set aside."""
        self._journal.append(self._without_repeats(chunk))

    def add(self, record: Record, arrays: Arrays) -> None:
        """Append one crystal."""
        self._wait((record, arrays))

    def skip(self, crystal: SetAside) -> None:
        """Note a crystal that could not be used."""
        self._wait((crystal, {}))

    def cancel(self) -> None:
        """Write nothing: the file has been made by somebody else."""
        self._is_cancelled = True

    def _wait(self, built: Built) -> None:
        self._waiting.append(built)
        if len(self._waiting) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self.add_chunk(pack(self._waiting))
            self._waiting = []

    def _without_repeats(self, chunk: PackedChunk) -> PackedChunk:
        crystals = iter(zip(chunk.ids, chunk.sources, chunk.digests, strict=True))
        notes = {note.position: note for note in chunk.skipped}
        used, skipped = [], []
        for position in range(len(chunk)):
            note = notes.get(position)
            if note is None:
                repeated = self._repeats.note(*next(crystals))
                used.append(repeated is None)
            elif note.digest:
                repeated = self._repeats.note(note.crystal.material_id, note.crystal.source, note.digest)
            else:
                repeated = None
            if repeated is not None:
                skipped.append(Skipped(position, repeated, b""))
            elif note is not None:
                skipped.append(note)
        mask = np.array(used, dtype=bool)
        return chunk if mask.all() and len(skipped) == len(notes) else chunk.keep(mask, skipped)


def _journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.parts")
