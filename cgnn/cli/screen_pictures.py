"""Pictures and pages of a finished screen."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cgnn.errors import MissingPackageError
from cgnn.physics import RELATIONS
from cgnn.screen import Screening

if TYPE_CHECKING:
    import pandas as pd

    from cgnn.plots.ashby import Materials

PICTURE, PAGE, FUNNEL, HITS = "ashby.png", "ashby.html", "funnel.png", "hits.png"
PAGES = 100
"""So many finalists get a page."""
_DETAILS = ("bulk_modulus", "shear_modulus", "novelty")
"""Columns that the page tells besides, where they are there."""


def write_pictures(found: Screening, link: str = "") -> list[Path]:
    """Write ``funnel.png``, ``hits.png``, and of crystals with hardness and toughness ``ashby.png``, ``ashby.html``.

    Beside the CIF of each of the first finalists lies a page on which it can be turned; a click on it in the diagram
    leads there. Without matplotlib or plotly pictures are left out with a warning.

    Args:
        found: The screen.
        link: Where a click on any other crystal leads, with ``{id}`` for its id.

    Returns:
        The diagram and its page, those that were written.
    """
    written: list[Path] = []
    try:
        _draw_funnel(found)
        _draw_hits(found)
        drawn = _materials(found)
        if drawn is not None:
            _write_diagram(found, *drawn, link, written)
    except MissingPackageError as error:
        warnings.warn(f"no plots: {error}", stacklevel=2)
    return written


def _draw_funnel(found: Screening) -> None:
    from cgnn.plots import save
    from cgnn.plots.screening import funnel

    save(funnel([(count["stage"], count["after"]) for count in found.counts]), found.folder / FUNNEL)


def _draw_hits(found: Screening) -> None:
    """Draw in how many of the crystals that the first ranking kept each element is."""
    from cgnn.plots import save
    from cgnn.plots.screening import PLACES, periodic_table

    kinds = [count["kind"] for count in found.counts]
    first = kinds.index("rank")
    early = {count["stage"] for count in found.counts[: first + 1]}
    frame = found.reached_ranking(["chemical_system"])
    kept = frame[~frame["stage"].isin(early)]["chemical_system"].str.split("-").explode().value_counts()
    hits = {str(element): float(count) for element, count in kept.items() if element in PLACES}
    if hits:
        title = f"elements of what {found.counts[first]['stage']!r} kept"
        save(periodic_table(hits, "crystals", title=title), found.folder / HITS)


def _materials(found: Screening) -> tuple[Materials, list[int]] | None:
    """Return the crystals of the diagram and the rows of the finalists; None where there is nothing to draw."""
    from cgnn.plots.ashby import Materials

    relations = [name for name in RELATIONS if name.startswith(("toughness_", "hardness_"))]
    bands = [f"{name}{end}" for name in relations for end in ("_p16", "_p84")]
    frame = found.reached_ranking(["formula", "metal", *relations, *bands, *_DETAILS])
    axes = [next((name for name in relations if name.startswith(kind) and name in frame), None)
            for kind in ("toughness_", "hardness_")]  # fmt: skip
    if axes[0] is None or axes[1] is None:
        return None
    x, y = axes[0], axes[1]
    barred = frame["metal"].astype(bool) & (not RELATIONS[x].for_metals or not RELATIONS[y].for_metals)
    frame = frame[(frame[x] > 0) & (frame[y] > 0) & ~barred].reset_index(drop=True)
    if frame.empty:
        return None
    units = found.table.attrs["units"]
    materials = Materials(
        ids=frame["material_id"].tolist(),
        hardness=frame[y],
        toughness=frame[x],
        formulas=frame["formula"].tolist(),
        hardness_band=_band(frame, y),
        toughness_band=_band(frame, x),
        relations=(x, y),
        details={_titled(name, units): frame[name] for name in _DETAILS if name in frame},
    )
    rows = {name: row for row, name in enumerate(frame["material_id"]) if frame["stage"][row] == ""}
    return materials, [rows[name] for name in found.table["material_id"] if name in rows]


def _band(frame: pd.DataFrame, name: str) -> Any:
    ends = [f"{name}_p16", f"{name}_p84"]
    return np.array([frame[end] for end in ends]) if set(ends) <= set(frame) else None


def _titled(name: str, units: dict[str, str]) -> str:
    unit = units.get(name, "")
    return name.replace("_", " ") + (f" ({unit})" if unit else "")


def _write_diagram(found: Screening, materials: Materials, short: list[int], link: str, written: list[Path]) -> None:
    from cgnn.plots import save
    from cgnn.plots.ashby import ashby
    from cgnn.plots.ashby_page import write_page

    save(ashby(materials, short), found.folder / PICTURE)
    written.append(found.folder / PICTURE)
    pages = _write_crystals(found)
    links = {row: pages[materials.ids[row]] for row in short if materials.ids[row] in pages}
    write_page(found.folder / PAGE, materials, short, link=link, links=links)
    written.append(found.folder / PAGE)


def _write_crystals(found: Screening) -> dict[str, str]:
    """Write a page for each of the first finalists; return where they lie, by id, seen from the folder."""
    from cgnn.plots.crystal_page import write_crystal_pages

    table, files, structures = found.table, found.finalist_files(), found.structures(PAGES)
    units = table.attrs["units"]
    shown = [name for name in table.columns if name.startswith(("hardness", "toughness", *_DETAILS[:2]))]
    shown = [name for name in shown if not name.endswith(("_std", "_lower", "_upper", "_p5", "_p50", "_p95"))]
    crystals = {}
    for row in table.head(PAGES).to_dict("records"):
        name = row["material_id"]
        values = ", ".join(f"{_titled(column, {})} {row[column]:.3g} {units.get(column, '')}" for column in shown)
        crystals[files[name].name] = (structures[name], f"{row['rank']}  {row['formula']} ({name})\n{values}")
    folder = next(iter(files.values())).parent if files else found.folder
    write_crystal_pages(folder, crystals)
    return {name: f"{folder.name}/{files[name].name}.html" for name in structures}
