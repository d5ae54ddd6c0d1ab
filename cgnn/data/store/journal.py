"""The journal of an unfinished file of graphs: chunks appended one after another, each with its checksum.

A builder that was killed leaves its journal behind; the next one of the same file goes on after the last whole
chunk. One builder at a time holds it (``flock``, which the system releases when a process ends, however it ends);
others wait and then find the finished file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.data.items import SetAside
from cgnn.data.store.chunks import PackedChunk, Skipped
from cgnn.files import writing

Bytes = NDArray[np.uint8]

_PREFIX = struct.Struct("<QQ16s")
"""Bytes of the head, bytes of the body, checksum of both."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems without locks answer."""


@dataclass(frozen=True)
class Frame:
    """One chunk as it lies in the journal.

    Args:
        counts: Number of its ``crystal``, ``atom`` and ``edge`` entries, and of ``item`` (crystals used or not).
        columns: Names of its columns of values.
        places: Array -> where it begins and ends in the journal (bytes).
    """

    counts: dict[str, int]
    columns: list[str]
    places: dict[str, tuple[int, int]]

    @classmethod
    def at(cls, start: int, head: Mapping[str, Any]) -> Frame:
        """Return the frame whose body begins at a byte of the journal."""
        ends = start + np.cumsum([0, *head["sizes"].values()])
        places = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        return cls(head["counts"], head["columns"], dict(zip(head["sizes"], places, strict=True)))


class Journal:
    """Chunks of an unfinished file; use as a context.

    Args:
        path: The journal.
        heading: What the chunks are made from; those under another heading are thrown away.
        resume: Whether to keep the chunks that a killed builder left.

    Attributes:
        is_shared: Whether others wait for this one; not on file systems without locks, where each has its own.
    """

    def __init__(self, path: Path, heading: str, resume: bool) -> None:
        self.path = path
        self.frames: list[Frame] = []
        self._heading = _framed({"heading": heading}, [])
        self._resume = resume
        self.is_shared = True

    def __enter__(self) -> Journal:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = _locked(self.path)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                # a journal of its own: nobody else can write to it, and nobody can go on with it
                self.discard()
                self.is_shared = False
                self.path = self.path.with_name(f"{self.path.name}.{secrets.token_hex(6)}")
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            self._size = self._read() if self._resume else 0
            os.ftruncate(self._file, self._size)
        if not self._size:
            self._append(self._heading)
        return self

    def __exit__(self, *error: object) -> None:
        if not self.is_shared:
            self.discard()
        # closing alone would leave the lock with processes that were forked meanwhile
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_UN)
        os.close(self._file)

    def discard(self) -> None:
        """Remove the journal; whoever waits for it begins with a new one."""
        with suppress(FileNotFoundError):
            self.path.unlink()

    def append(self, chunk: PackedChunk) -> None:
        """Add a chunk."""
        arrays = _arrays(chunk)
        sizes = {name: array.nbytes for name, array in arrays.items()}
        head = {
            "counts": {
                "crystal": len(chunk.ids),
                "atom": int(chunk.atoms.sum()),
                "edge": int(chunk.edges.sum()),
                "item": len(chunk),
            },
            "columns": [*chunk.columns, *chunk.unpacked],
            "sizes": sizes,
        }
        self._append(_framed(head, list(arrays.values())))
        self.frames.append(Frame.at(self._size - sum(sizes.values()), head))

    def parts(self, name: str) -> Iterator[tuple[Frame, Bytes]]:
        """Yield the bytes of one array in each chunk."""
        content = self._mapped()
        for frame in self.frames:
            yield frame, content[slice(*frame.places[name])]

    def names(self) -> Iterator[tuple[list[str], list[str], list[bytes]]]:
        """Yield ids, sources and digests of the crystals of each chunk."""
        for (_, ids), (_, sources), (_, digests) in zip(
            self.parts("id_lines"), self.parts("source_lines"), self.parts("digests"), strict=True
        ):
            whole = digests.tobytes()
            yield _lines(ids), _lines(sources), [whole[at : at + 16] for at in range(0, len(whole), 16)]

    def skipped(self) -> Iterator[Skipped]:
        """Yield the crystals that were set aside."""
        for _, part in self.parts("skipped"):
            for position, crystal, digest in json.loads(part.tobytes()):
                yield Skipped(position, SetAside(**crystal), bytes.fromhex(digest))

    def _mapped(self) -> Bytes:
        return np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r", shape=(self._size,)))

    def _read(self) -> int:
        """Find the whole chunks that are there and return where they end."""
        size = os.fstat(self._file).st_size
        if not size or os.pread(self._file, len(self._heading), 0) != self._heading:
            return 0
        content = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r", shape=(size,)))
        end = len(self._heading)
        while size - end >= _PREFIX.size:
            head_size, body_size, digest = _PREFIX.unpack(content[end : end + _PREFIX.size].tobytes())
            start = end + _PREFIX.size
            if head_size + body_size > size - start:
                break
            frame = content[start : start + head_size + body_size]
            if sha256(frame.data).digest()[:16] != digest:
                break
            self.frames.append(Frame.at(start + head_size, json.loads(frame[:head_size].tobytes())))
            end = start + len(frame)
        return end

    def _append(self, content: bytes) -> None:
        with writing(self.path):
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self._size += len(content)


def _locked(path: Path) -> int:
    """Return a descriptor of a file that this process alone holds, made if need be."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed by its owner while this process waited


def _framed(head: Mapping[str, Any], arrays: list[NDArray[Any]]) -> bytes:
    text = json.dumps(head).encode()
    body = b"".join(array.tobytes() for array in arrays)
    digest = sha256(text + body).digest()[:16]
    return _PREFIX.pack(len(text), len(body), digest) + text + body


def _arrays(chunk: PackedChunk) -> dict[str, NDArray[Any]]:
    skipped = [(position, asdict(crystal), digest.hex()) for position, crystal, digest in chunk.skipped]
    texts = {
        "record": b"".join(chunk.texts),
        "id_lines": "".join(f"{line}\n" for line in chunk.ids).encode(),
        "source_lines": "".join(f"{line}\n" for line in chunk.sources).encode(),
        "digests": b"".join(chunk.digests),
        "skipped": json.dumps(skipped).encode(),
    }
    columns = chunk.columns.values()
    return {
        **chunk.fields,
        "atom_counts": chunk.atoms,
        "edge_counts": chunk.edges,
        "record_counts": np.array([len(text) for text in chunk.texts], dtype=np.int64),
        **{name: np.frombuffer(text, dtype=np.uint8) for name, text in texts.items()},
        "kinds": np.array([column.kinds for column in columns], dtype=np.uint8),
        "values": np.array([column.values for column in columns], dtype=np.float64),
    }


def _lines(part: Bytes) -> list[str]:
    return part.tobytes().decode().split("\n")[:-1]
