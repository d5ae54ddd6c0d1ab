"""The table of a study of depth: a row per depth, remedy, seed and layer."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from cgnn.config import Config
from cgnn.data.tables import TableWriter
from cgnn.errors import DataError
from cgnn.model.depth import MEASURES
from cgnn.targets import Target
from cgnn.train.depth.watch import LAYERS_FILE, read_layers

STEPS = ("gradient", "gradient_start", "update")
Row = dict[str, Any]
_WHOLE = ("depth", "seed", "layer", "width", "parameters", "epoch")
"""Columns of whole numbers."""


def score_of(target: Target) -> str:
    """Return the score by which depths are compared: the error on the learned scale, or the log loss of classes."""
    if target.task != "regression":
        return "log_loss"
    return "mae" if target.transform == "none" else f"mae_{target.transform}"


def rows_of(place: Path, config: Config, remedy: str, found: Row) -> Iterator[Row]:
    """Yield a row for each layer of a finished fit, as it was in the epoch of the model.

    ``gradient`` and ``update`` are means over the epochs, ``gradient_start`` is that of the first step of all.

    Args:
        place: Its folder.
        config: Its settings.
        remedy: Name of its remedy.
        found: What was noted of it at its end.
    """
    metrics = orjson.loads((place / "metrics.json").read_bytes()) | {"train": found["train"]}
    epochs = read_layers(place / LAYERS_FILE)
    best = next(row for row in epochs if row["epoch"] == found["best_epoch"])
    model = config.model
    errors = {
        f"{part}_{target.name}": metrics[part][target.name].get(score_of(target), math.nan)
        for part in ("train", "val", "test")
        for target in config.targets
    }
    steps = [row for row in epochs if "gradient" in row]
    for layer in range(model.depth + 1):
        row: Row = {"depth": model.depth, "remedy": remedy, "seed": config.train.seed, "layer": layer}
        row |= {"width": model.width, "parameters": found["parameters"]}
        row |= {name: best[name][layer] for name in MEASURES}
        row |= dict.fromkeys(STEPS, math.nan)
        if layer and steps:
            row |= {name: float(np.mean([each[name][layer - 1] for each in steps])) for name in ("gradient", "update")}
            row["gradient_start"] = steps[0]["gradient"][layer - 1] if steps[0]["epoch"] == 1 else math.nan
        yield row | errors | {"epoch": found["best_epoch"], "seconds": found["seconds"]}


def write_table(path: Path, rows: list[Row]) -> None:
    """Write the rows of a study, all or nothing."""
    with TableWriter(path, {"seconds": "s"}) as table:
        table.add({name: [row[name] for row in rows] for name in rows[0]})


def read_table(path: str | Path) -> list[Row]:
    """Return the rows of a ``depth.csv``, such as `cgnn.train.depth.verdicts` and the pictures take them.

    Raises:
        DataError: The file can't be read or holds no such table.
    """
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            found = list(csv.DictReader(handle))
        if missing := {*_WHOLE, "remedy", *MEASURES} - set(found[0] if found else ()):
            raise ValueError(f"no column {min(missing)!r}")
        return [{name: _number(name, text) for name, text in row.items()} for row in found]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no table of a study of depth: {error}") from None


def _number(column: str, text: str) -> str | int | float:
    if column == "remedy":
        return text
    return int(float(text)) if column in _WHOLE else float(text or "nan")
