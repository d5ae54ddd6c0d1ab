"""JSON read as a stream: one document at a time, and a broken one does not cost the rest."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cgnn.data.reading.streams import CHUNK, READ_ERRORS, RECORD_BYTES, cut_off, read_up_to, too_large
from cgnn.errors import CrystalError, DataError


def parse_json(text: str) -> Any:
    """Return the value of one JSON text; keys given twice are refused.

    Raises:
        CrystalError: The text is no JSON, or nested too deeply.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise CrystalError("bad_json", f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise _bad_value(error) from None


def documents(handle: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the numbered documents of a JSON file without holding more than one.

    The file holds a list of documents, one document, documents one after another, a mapping of ids to documents,
    or an object with a list under ``data`` (rows of pandas' ``split`` form are joined with their ``columns``). A
    broken document is given as its `CrystalError`, and the next one is looked for.

    Raises:
        DataError: The file is no JSON.
    """
    text = _Text(handle)
    try:
        if text.peek() not in "[{":
            raise DataError(f"{path}: not JSON; a JSON file of crystals starts with '[' or '{{'")
        if text.peek() == "[":
            yield from text.elements()
        yield from _behind_the_list(text)
    except CrystalError as error:
        yield text.row + 1, _and_rest(error)


def rest_of_list(handle: Any, row: int, first_key: str, names: set[str]) -> Iterator[tuple[int, Any]]:
    """Yield what `documents` would from the middle of a list on.

    Args:
        handle: What comes next in it is the element behind ``row`` and its comma.
        row: Number of the last element that was read.
        first_key: The key with which the first element starts, in its quotes.
        names: The keys of the first element.
    """
    text = _Text(handle, row, names)
    try:
        yield from text.elements(first_key)
        yield from _behind_the_list(text)
    except CrystalError as error:
        yield text.row + 1, _and_rest(error)


def _behind_the_list(text: _Text) -> Iterator[tuple[int, Any]]:
    while text.peek() == "{" and not text.is_lost:
        yield from _members(text)
    if text.peek() and not text.is_lost:
        raise CrystalError("bad_json", "there is something else after the end of the JSON value")


def _members(text: _Text) -> Iterator[tuple[int, Any]]:
    whole: dict[str, Any] = {}
    is_whole = True
    for key in text.members():
        if key == "data" and text.peek() == "[":
            is_whole = False
            for row, value in text.elements():
                yield row, _joined(whole.get("columns"), value)
            if text.is_lost:
                return
            continue
        value = text.value()
        # an object is a mapping of ids to documents if its first entry is a document
        is_whole = is_whole and (bool(whole) or key == "structure" or not _is_document(value))
        if is_whole or whole:
            whole[key] = value
        else:
            text.row += 1
            yield text.row, _named(key, value)
    if is_whole:
        text.row += 1
        yield text.row, whole


def _named(key: str, value: Any) -> dict[str, Any]:
    is_structure = not isinstance(value, dict) or "sites" in value
    return {"id": key, "structure": value} if is_structure else {"id": key, **value}


def _is_document(value: Any) -> bool:
    return isinstance(value, dict) and ("structure" in value or ("lattice" in value and "sites" in value))


def _joined(columns: Any, row: Any) -> Any:
    if isinstance(columns, list) and isinstance(row, list) and len(columns) == len(row):
        return {str(name): value for name, value in zip(columns, row, strict=True)}
    return row


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CrystalError("duplicate_key", f"the key {twice[:80]!r} is given twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_MAX_FAILURES = 500
_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_KEY = re.compile(r'\{\s*("[^"\\]{1,200}")\s*:')


class _Text:
    """A window on a JSON text that grows on demand."""

    def __init__(self, handle: IO[bytes], row: int = 0, names: set[str] | None = None) -> None:
        self.row = row
        """Number of the last element."""
        self.is_lost = False
        """Nothing more can be read."""
        self._handle = handle
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = ""
        self._pos = 0
        self._ended = False
        self._is_between = False
        self._failures = 0
        self._names = names or set()

    def peek(self) -> str:
        """Return the next character that is no space, or ``""`` at the end."""
        while True:
            match = _SPACE.match(self._text, self._pos)
            self._pos = match.end() if match else self._pos
            if self._pos < len(self._text) or self._ended:
                return self._text[self._pos : self._pos + 1]
            self._more()

    def value(self) -> Any:
        """Return the value that starts here and move behind it."""
        self.peek()
        while True:
            try:
                value, self._pos = _DECODER.raw_decode(self._text, self._pos)
                return value
            except json.JSONDecodeError as error:
                if not self._is_cut(error):
                    raise self._broken(error) from None
            except (ValueError, RecursionError) as error:
                raise _bad_value(error) from None
            self._more()

    def elements(self, first_key: str | None = None) -> Iterator[tuple[int, Any]]:
        """Yield the elements of the list that starts (or, given its first key, goes on) here.

        A broken one is given as its `CrystalError`.
        """
        if first_key is None:
            self._take("[")
        going = first_key is not None or self.peek() != "]"
        while going:
            self.row += 1
            self._is_between = False
            try:
                first_key = first_key or self._first_key()
                value = self.value()
                self._keep_track(value)
                yield self.row, value
                going = self._next()
            except CrystalError as error:
                # what stands between two records counts as a broken record of its own
                self.row += self._is_between
                is_end = error.code in ("truncated", "too_large") or self._failures > _MAX_FAILURES
                going = not is_end and self._resume(first_key)
                self.is_lost = not going and self.peek() != "]"
                yield self.row, _and_rest(error) if self.is_lost else error
        self._pos += not self.is_lost

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that starts here; the caller takes each value."""
        self._take("{")
        going = self.peek() != "}"
        while going:
            key = self.value()
            if not isinstance(key, str):
                raise CrystalError("bad_json", "not valid JSON: a key is no text")
            self._take(":")
            yield key
            going = self.peek() == ","
            self._pos += going
        self._take("}")

    def _keep_track(self, value: Any) -> None:
        """Tell records from splinters of a damaged one, and give up after too many of these."""
        names = set(value) if isinstance(value, dict) else set()
        self._names = self._names or names
        if names & self._names:
            self._failures = 0
        elif self._failures:
            self._failures += 1
        if self._failures > _MAX_FAILURES:
            raise CrystalError("bad_json", "the list is damaged here")

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise self._broken(None, f"expected {character!r}")
        self._pos += 1

    def _next(self) -> bool:
        self._is_between = True
        following = self.peek()
        if following not in ",]" or not following:
            raise self._broken(None, "expected ',' or ']' after the record")
        self._pos += following == ","
        return following == ","

    def _more(self) -> None:
        # as much again as is held, so that parsing anew costs no more than reading once
        held = len(self._text) - self._pos
        if held > RECORD_BYTES:
            raise too_large()
        try:
            data = read_up_to(self._handle, max(CHUNK, held))
        except READ_ERRORS as error:
            self._ended = True
            raise cut_off(error) from None
        self._text = self._text[self._pos :] + self._decoder.decode(data, final=not data)
        self._pos = 0
        self._ended = not data

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        near_end = error.pos + 16 > len(self._text) or error.msg.startswith("Unterminated string")
        return near_end and not self._ended

    def _broken(self, error: json.JSONDecodeError | None, message: str = "") -> CrystalError:
        if self._ended and (error.pos if error else self._pos) >= len(self._text):
            return CrystalError("truncated", "the file ends in the middle of a record (download or copy it again)")
        return CrystalError("bad_json", f"not valid JSON: {error.msg if error else message}")

    def _first_key(self) -> str | None:
        self.peek()
        match = _FIRST_KEY.match(self._text, self._pos)
        return match[1] if match else None

    def _resume(self, first_key: str | None) -> bool:
        """Move behind a broken element: to the next one that starts like the first, or by its brackets."""
        self._failures += 1
        # "@module" and the like also open objects inside a document
        if first_key and not first_key.startswith('"@') and self._find(first_key):
            return True
        return self._skip_brackets()

    def _find(self, first_key: str) -> bool:
        pattern = re.compile(r"\{\s*" + re.escape(first_key) + r"\s*:")
        while True:
            match = pattern.search(self._text, self._pos + 1)
            if match or not self._can_grow():
                break
        if match:
            self._pos = match.start()
        return bool(match)

    def _skip_brackets(self) -> bool:
        while True:
            end = self._end_of_element()
            if end is not None or not self._can_grow():
                break
        if end is None:
            return False
        self._pos = end + (self._text[end] == ",")
        return self._text[end] == ","

    def _end_of_element(self) -> int | None:
        depth = 0
        for token in _TOKEN.finditer(self._text, self._pos):
            if depth == 0 and token[0] in ",]":
                return token.start()
            depth += token[0] in "[{"
            depth -= token[0] in "]}" and depth > 0
        return None

    def _can_grow(self) -> bool:
        if self._ended:
            return False
        try:
            self._more()
        except CrystalError:
            return False
        return True


def _and_rest(error: CrystalError) -> CrystalError:
    return CrystalError(error.code, f"{error.reason}; nothing after it could be read")


def _bad_value(error: Exception) -> CrystalError:
    if isinstance(error, RecursionError):
        return CrystalError("bad_json", "the JSON is nested too deeply")
    return CrystalError("bad_json", f"not valid JSON: {str(error)[:120]}")
