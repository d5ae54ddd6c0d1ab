"""Crystals for tests, as ASE atoms: their positions can be changed without a second thought."""

from __future__ import annotations

from typing import Any

from ase import Atoms


def crystal(document: dict[str, Any]) -> Atoms:
    """Return the crystal of a Materials Project style document, positions as written."""
    sites = document["structure"]["sites"]
    return Atoms(
        [site["species"][0]["element"] for site in sites],
        scaled_positions=[site["abc"] for site in sites],
        cell=document["structure"]["lattice"]["matrix"],
        pbc=True,
    )
