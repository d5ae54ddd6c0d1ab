"""Opening prepared graphs, against building them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import inputs
import numpy as np
from clock import Ratio, compare, seconds

from cgnn.config import DataConfig, GraphConfig
from cgnn.data.engines import applied
from cgnn.data.prepare import prepare
from cgnn.data.store import GraphStore


def opening(quick: bool) -> Ratio:
    """Measure opening a prepared set of 100,000 crystals."""
    return _opened(quick, "open a prepared set of {:,} crystals", 1000, lambda store: len(store))


def opening_and_reading(quick: bool) -> Ratio:
    """Measure the same with the graphs of 256 random crystals read and verified."""

    def read(store: GraphStore) -> None:
        for row in np.random.default_rng(0).integers(len(store), size=256):
            store.graph(int(row))

    return _opened(quick, "open it and read the graphs of 256 random crystals", None, read)


def _opened(quick: bool, work: str, floor: float | None, use: Callable[[GraphStore], object]) -> Ratio:
    count = 20 if quick else 100_000
    with tempfile.TemporaryDirectory() as name:
        path = inputs.write_parquet(inputs.table(count), Path(name) / "crystals.parquet")
        time.sleep(0 if quick else 3)  # inputs younger than two seconds are hashed again when opened, to be safe
        data, graph = DataConfig(path=str(path), cache=name), GraphConfig()
        building = seconds(lambda: prepare(data, graph, engine=applied("serial")))
        times = [seconds(lambda: use(prepare(data, graph))) for _ in range(2 if quick else 7)]
    note = f"building once, in one process; opening best of {len(times)}; {inputs.source()}"
    return compare(work.format(count), "building it", "s", ([building] * len(times), times), (1, 1), floor, note)
