"""Screening in one call: structures in, a table of the best out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgnn.data.records import blocks, from_structures
from cgnn.data.store.content import content_key
from cgnn.screen.funnel import Funnel
from cgnn.screen.results import Screening
from cgnn.screen.settings import build_screen

if TYPE_CHECKING:
    import pandas as pd

PROPERTIES = ("hardness_mo", "toughness_mo", "poisson_ratio")
"""What is derived unless told otherwise."""


def screen(
    structures: Any,
    models: str | Path | Sequence[str | Path] = "elasticity",
    rules: str | Sequence[str] = (),
    top: int = 100,
    *,
    of: str | Sequence[str] = "hardness_mo",
    by: str | None = None,
    threshold: float | None = None,
    properties: Sequence[str] = PROPERTIES,
    unique: str | None = "structure",
    ids: Sequence[str] | None = None,
    output: str | Path | None = None,
    engine: str = "serial",
    workers: int = 0,
) -> pd.DataFrame:
    """Return the best of many crystals.

    Args:
        structures: pymatgen ``Structure`` or ASE ``Atoms``, one or many, or the path of a file or folder.
        models: Stored models: run folders, files, names of the package's own.
        rules: What a crystal must fulfil, such as ``"toughness_mo > 2 and not metal"``.
        top: How many are kept.
        of: Column that is ranked by, or several for Pareto fronts.
        by: An entry of `cgnn.screen.RANKINGS`; by default ``pareto`` for several columns, ``probability`` where
            there is a threshold, else ``value`` (docs/screening.md says which found the hardest).
        threshold: For ``probability`` and ``expected_improvement``.
        properties: Entries of `cgnn.physics.RELATIONS` to derive from the moduli; none with ``()``.
        unique: How duplicates are told, an entry of `SAMENESS`; None where they stay.
        ids: Of the structures; by default ``crystal-0``, ...
        output: Folder for everything that a screen leaves; none is kept by default.
        engine: As for `cgnn.Predictor.stream`.
        workers: Likewise.

    Returns:
        One row for each, the best first; ``attrs["units"]`` holds the units, ``attrs["counts"]`` how many passed each
        stage.

    Raises:
        ConfigError: A rule is none or names no column, a model lacks a property, the settings do not fit.
        DataError: No crystal was given.
    """
    wanted = [models] if isinstance(models, str | Path) else list(models)
    stages: list[dict[str, Any]] = [{"kind": "predict", "model": str(model)} for model in wanted]
    if properties:
        stages.append({"kind": "derive", "properties": list(properties)})
    stages += [{"kind": "filter", "rule": rule} for rule in ([rules] if isinstance(rules, str) else rules)]
    stages += [{"kind": "unique", "by": unique}] if unique else []
    columns = of if isinstance(of, str) else list(of)
    alone = "value" if threshold is None else "probability"
    how = by or (alone if isinstance(of, str) else "pareto")
    stages.append({"kind": "rank", "by": how, "of": columns, "keep": top, "threshold": threshold})
    funnel = Funnel(build_screen({"stages": stages}))
    is_path = isinstance(structures, str | Path)
    crystals = blocks(structures) if is_path else from_structures(structures, ids)
    source = content_key(structures) if is_path else ""
    with tempfile.TemporaryDirectory() as folder:
        place = output or Path(folder) / "screen"
        found: Screening = funnel.run(crystals, place, engine=engine, workers=workers, source=source)
        return found.table
