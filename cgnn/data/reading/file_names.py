"""What the name of a file says about its content."""

from __future__ import annotations

import os
from pathlib import Path

ENDINGS = {
    ".json": "mp_json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".graphs": "graphs",
}
_KINDS = {".cif": "cif", ".vasp": "poscar", ".poscar": "poscar", ".json": "json"}


def file_format(name: str) -> str:
    """Return the format of a file of that name, or ``""`` where the name does not tell."""
    return ENDINGS.get(_parts(name)[1].lower()) or file_kind(name)


def file_kind(name: str) -> str:
    """Return ``cif``, ``poscar`` or ``json`` for the name of a file that holds one crystal, else ``""``."""
    if name.startswith("."):
        return ""
    if name.upper().startswith(("POSCAR", "CONTCAR")):
        return "poscar"
    return _KINDS.get(_parts(name)[1].lower(), "")


def stem(path: Path) -> str:
    """Return a file's name without its ending and ``.gz``."""
    name, ending = _parts(path.name)
    return name if ending.lower() in {*ENDINGS, *_KINDS} else name + ending


def _parts(name: str) -> tuple[str, str]:
    """Return a name without ``.gz``, cut before its ending."""
    return os.path.splitext(name[:-3] if name.lower().endswith(".gz") else name)
