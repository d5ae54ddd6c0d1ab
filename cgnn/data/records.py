"""Readers: files of crystals in, one stream of `Record`s and `SetAside`s out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pymatgen.core import Structure

Value = float | int | str | bool | list[float] | None


@dataclass(frozen=True)
class Record:
    """One crystal as read.

    Args:
        material_id: Opaque identifier, unique within a data set.
        structure: The crystal.
        values: Columns by (dotted) name: scalars, or one number per atom.
        source: ``file`` or ``file:row`` it came from.
    """

    material_id: str
    structure: Structure
    values: dict[str, Value] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class SetAside:
    """One crystal that can't be used, and why.

    Args:
        material_id: Its identifier, or ``""`` where none could be read.
        source: ``file`` or ``file:row``.
        stage: ``"read"``, ``"graph"``, ``"label"`` or ``"predict"``.
        code: Short machine-readable reason, such as ``"overlap"``.
        reason: One sentence for people.
    """

    material_id: str
    source: str
    stage: str
    code: str
    reason: str


Item = Record | SetAside
Stream = Iterator[Item]
