"""JSON exports and JSON Lines, read by orjson where that is certain to be right.

A list is cut in front of its elements, which all start with the same key. What orjson parses between two cuts is a
whole number of elements. Where it does not, or reads otherwise than is written (keys given twice, numbers of many
digits), the exact reading of `cgnn.data.reading.json_stream` decides, and says what is wrong.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import orjson

from cgnn.data.items import Block, Documents, Item, SetAside, Source
from cgnn.data.reading import streams
from cgnn.data.reading.documents import Columns
from cgnn.data.reading.file_names import stem
from cgnn.data.reading.json_stream import documents, parse_json, rest_of_list
from cgnn.errors import CrystalError, DataError

SLICE = 2**16
"""So many bytes are parsed at once: of more, the garbage collector looks through the parsed dicts again and again."""
_HELD = 8
"""So many documents are held where each may be as large as one can be."""
_TRIES = 4
"""A place where an element seems to start may lie inside one."""

_SPACES = b" \t\r\n"
_START = re.compile(rb'(?:\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*(\{[ \t\r\n]*("[^"\\]{1,200}")[ \t\r\n]*:)')
_VALUE = re.compile(rb'[ \t\r\n]*"[^"\\]{0,200}"')
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_MANY_DIGITS = b"0" * 24
"""More than a printed float has; Python refuses integers of thousands of digits, orjson does not."""
_EXACT = 2.0**63
"""A float of this size may be what orjson makes of an integer."""


@dataclass(frozen=True)
class Elements:
    """A block of whole elements of a JSON list.

    Args:
        content: Their text, with commas between them.
        first: Row of the first.
        source: Where they come from.
        is_exact: Whether orjson would misread them.
        parsed: What they are; parsed again in another process.
    """

    content: bytes
    first: int
    source: Source
    is_exact: bool
    parsed: list[Any] = field(compare=False, repr=False)

    def items(self) -> list[Item]:
        """Return the crystals."""
        exact = cache(lambda: _parse_exactly(self.content))
        return _items(enumerate(self.parsed, self.first), self.source, lambda row: exact()[row - self.first])

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        numbered = enumerate(_parse_exactly(self.content), self.first)
        return [Documents([(row, document)], self.source) for row, document in numbered]

    @property
    def place(self) -> str:
        """Where the first element stands."""
        return f"{self.source.file}:{self.first}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _elements, (self.content, self.first, self.source, self.is_exact)


def _elements(content: bytes, first: int, source: Source, is_exact: bool) -> Elements:
    parsed = _parse_exactly(content) if is_exact else orjson.loads(b"[%b]" % content)
    return Elements(content, first, source, is_exact, parsed)


Parse = Callable[[bytes, int, Source], Elements | None]


@dataclass(frozen=True)
class Lines:
    """A block of whole lines, each with a JSON document or blank."""

    content: bytes
    first: int
    source: Source

    def items(self) -> list[Item]:
        """Return the crystals."""
        lines = self.content.split(b"\n")
        parsed = {}
        for row, line in enumerate(lines):
            if line.strip():
                parsed[row] = _loads(line)
        read = [row for row, document in parsed.items() if document is not None]
        text = self.content if len(read) == len(parsed) else b"\n".join(lines[row] for row in read)
        if not _is_certain(text, [parsed[row] for row in read]):
            parsed = dict.fromkeys(parsed)
        numbered = [(row + self.first, document) for row, document in parsed.items() if document or _text(lines[row])]
        return _items(numbered, self.source, lambda row: parse_json(_text(lines[row - self.first])))

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        numbered = enumerate(self.content.split(b"\n"), self.first)
        return [Lines(line, row, self.source) for row, line in numbered if line.strip()]

    @property
    def place(self) -> str:
        """Where the first line stands."""
        return f"{self.source.file}:{self.first}"


def _items(numbered: Iterable[tuple[int, Any]], source: Source, exact: Callable[[int], Any]) -> list[Item]:
    items = []
    for row, document in numbered:
        item = source.item(document, row)
        if isinstance(item, SetAside) or _may_be_integers(item.values):
            try:
                item = source.item(exact(row), row)
            except CrystalError as error:
                item = source.item(error, row)
        items.append(item)
    return items


def _may_be_integers(values: dict[str, Any]) -> bool:
    for value in values.values():
        if isinstance(value, float):
            if abs(value) >= _EXACT:
                return True
        elif isinstance(value, list) and any(isinstance(entry, float) and abs(entry) >= _EXACT for entry in value):
            return True
    return False


def read_json(path: Path, columns: Columns) -> Iterator[Block]:
    """Read a JSON export: a list of documents as mp-api and monty dump them."""
    source = Source(path.name, stem(path), columns)
    with streams.opened(path) as handle:
        window = _Window(handle)
        window.grow()
        start = _start(window.held)
        row = 0
        names: set[str] = set()
        if start:
            mark, first_key = start
            window.held = window.held[window.held.index(mark) :]
            while block := window.elements(mark, row + 1, source):
                yield block
                names = names or set(block.parsed[0])
                row += len(block.parsed)
            if window.is_finished:
                return
        if row:
            rest = rest_of_list(window.put_back(), row, first_key, names)
        else:
            rest = documents(window.put_back(b"[" if start else b""), path)
        yield from _groups(rest, source)


def _start(text: bytes) -> tuple[bytes, str] | None:
    """Return the bytes with which the elements of a list start, and their first key in its quotes."""
    match = _START.match(text)
    if match is None:
        return None
    key = match[2].decode("utf-8", "replace")
    # "@module" and the like also open objects inside a document; with their values they do not
    value = _VALUE.match(text, match.end()) if key.startswith('"@') else None
    return text[match.start(1) : value.end() if value else match.end()], key


class _Window:
    """What was read of a file and not yet passed on."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.held = b""
        self.is_finished = False
        self.is_at_end = False
        self._handle = handle
        self._error: Exception | None = None

    def grow(self) -> bool:
        """Hold as much again; return whether there is more to come."""
        try:
            more = streams.read_up_to(self._handle, max(SLICE, len(self.held)))
        except streams.READ_ERRORS as error:
            self._error = error
            return False
        self.held += more
        self.is_at_end = not more
        return bool(more)

    def put_back(self, before: bytes = b"") -> Any:
        """Return a handle that gives what is held and what follows."""
        return streams.PutBack(before + self.held, self._handle, self._error)

    def elements(self, mark: bytes, first: int, source: Source) -> Elements | None:
        """Take the whole elements of a list that are held; ``None`` where there are no more, or in doubt.

        Args:
            mark: What the elements start with.
            first: Row of the first.
            source: Where they come from.
        """
        while not self.is_finished:
            cut = self.held.rfind(mark, 1)
            if self.is_at_end:
                return self._last(first, source)
            if cut > 0:
                return self._before(mark, cut, first, source)
            if len(self.held) > streams.RECORD_BYTES or not (self.grow() or self.is_at_end):
                return None
        return None

    def _before(self, mark: bytes, cut: int, first: int, source: Source) -> Elements | None:
        last = cut
        for _ in range(_TRIES):
            block = self._up_to(cut, b",", _parsed, first, source)
            if block or cut < 0:
                break
            cut = self.held.rfind(mark, 1, cut)
        # what orjson refuses may still be no mistake: NaN
        return block or self._up_to(last, b",", _parsed_exactly, first, source)

    def _last(self, first: int, source: Source) -> Elements | None:
        end = len(self.held)
        block = self._up_to(end, b"]", _parsed, first, source) or self._up_to(end, b"]", _parsed_exactly, first, source)
        self.is_finished = block is not None
        return block

    def _up_to(self, end: int, sign: bytes, parsed: Parse, first: int, source: Source) -> Elements | None:
        text = self.held[:end].rstrip(_SPACES)
        block = parsed(text[:-1], first, source) if end > 0 and text.endswith(sign) else None
        if block:
            self.held = self.held[end:]
        return block

    def lines(self) -> bytes:
        """Take the whole lines that are held; nothing where there are no more, or where one is too long."""
        while b"\n" not in self.held and not self.is_at_end:
            if len(self.held) > streams.RECORD_BYTES or not (self.grow() or self.is_at_end):
                return b""
        end = len(self.held) if self.is_at_end else self.held.rfind(b"\n") + 1
        if end > streams.RECORD_BYTES:
            return b""
        lines, self.held = self.held[:end], self.held[end:]
        return lines


def _parsed(content: bytes, first: int, source: Source) -> Elements | None:
    """Return a block of the elements in a text, if orjson reads whole ones in it."""
    parsed = _loads(b"[%b]" % content)
    if not parsed:
        return None
    is_certain = _is_certain(content, parsed)
    return Elements(content, first, source, False, parsed) if is_certain else _parsed_exactly(content, first, source)


def _parsed_exactly(content: bytes, first: int, source: Source) -> Elements | None:
    try:
        parsed = _parse_exactly(content)
    except CrystalError:
        return None
    return Elements(content, first, source, True, parsed) if parsed else None


def _loads(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _parse_exactly(content: bytes) -> list[Any]:
    parsed: list[Any] = parse_json(f"[{content.decode('utf-8', 'replace')}]")
    return parsed


def _is_certain(text: bytes, parsed: list[Any]) -> bool:
    """Tell whether no key in a text is given twice (orjson keeps the last) and no number has too many digits."""
    if _MANY_DIGITS in text.translate(_DIGITS):
        return False
    # every key ends with these two signs; a text that holds them too is counted on both sides, or is a doubt
    written = text.translate(None, _SPACES).count(b'":')
    if b"\\" in text:
        return written == _number_of_keys(parsed)
    return written == orjson.dumps(parsed).translate(None, _SPACES).count(b'":')


def _number_of_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_number_of_keys, value.values()))
    return sum(map(_number_of_keys, value)) if isinstance(value, list) else 0


def _groups(numbered: Iterable[tuple[int, Any]], source: Source) -> Iterator[Block]:
    rest = iter(numbered)
    while group := list(itertools.islice(rest, _HELD)):
        yield Documents(group, source)


def read_jsonl(path: Path, columns: Columns) -> Iterator[Block]:
    """Read JSON Lines: a document a line."""
    source = Source(path.name, stem(path), columns)
    with streams.opened(path) as handle:
        window = _Window(handle)
        row = 1
        while window.grow():
            content = window.lines()
            if not content:
                break
            if row == 1:
                _check_first(_text(content.partition(b"\n")[0]), path)
            if content.strip():
                yield Lines(content, row, source)
            row += content.count(b"\n")
        yield from _groups(_json_lines(window.put_back(), path, row), source)


def _json_lines(handle: Any, path: Path, first: int) -> Iterator[tuple[int, Any]]:
    lines = streams.Lines(handle)
    for row in itertools.count(first):
        try:
            line = next(lines).strip()
            if row == 1:
                _check_first(line, path)
            if line:
                yield row, parse_json(line)
        except StopIteration:
            return
        except CrystalError as error:
            yield row, error


def _check_first(line: str, path: Path) -> None:
    if line.startswith("["):
        raise DataError(f"{path}: is a JSON list, not JSON Lines; use format 'mp_json'")


def _text(line: bytes) -> str:
    return line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace").strip()
