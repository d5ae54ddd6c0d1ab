"""How the cost grows with the size of a cell and with the number of crystals."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inputs
import torch
from child import in_own_process
from clock import seconds, slope

from cgnn.config import GraphConfig, build
from cgnn.data.dataset import collate
from cgnn.data.reading.cif import crystal_from_cif
from cgnn.graph.build import GraphBuilder
from cgnn.model import CrystalGNN

LARGEST_CELL = 12
"""Atoms of the largest cells that are repeated; a million of them must fit on the disk."""
ATOMS_TOGETHER = 1200
"""Atoms of a batch of small cells: predictions are made in batches, by size."""


def growth_with_atoms(quick: bool) -> dict[str, Any]:
    """Measure reading, graph and network of one crystal in cells of 2 to 600 atoms."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    crystals = inputs.supercells(16 if quick else 600)
    texts = inputs.cif_texts(crystals)
    builder = GraphBuilder(GraphConfig())
    config = build({"targets": [{"name": "x"}]})
    network = CrystalGNN(config.model, config.targets).eval()
    atoms = [len(crystal) for crystal in crystals]
    copies = [max(1, ATOMS_TOGETHER // count) for count in atoms]
    batches = [collate([builder.arrays(crystal)] * count) for crystal, count in zip(crystals, copies, strict=True)]
    times = {
        "CIF text to crystal": [_one(lambda text=text: crystal_from_cif(text), quick) for text in texts],
        "`Structure` to graph": [_one(lambda crystal=crystal: builder.arrays(crystal), quick) for crystal in crystals],
        "graph to prediction": [
            _one(lambda batch=batch: _predicted(network, batch), quick) / count
            for batch, count in zip(batches, copies, strict=True)
        ],
    }
    torch.set_flush_denormal(False)
    return {
        "kind": "growth",
        "work": "one crystal, by its atoms",
        "size": "atoms",
        "sizes": atoms,
        "unit": "ms",
        "times": times,
        "slopes": {name: slope(atoms[-5:], values[-5:]) for name, values in times.items()},
        "note": "one thread, best of several; predicted in batches; exponents over the five largest cells",
    }


def growth_with_crystals(quick: bool) -> dict[str, Any]:
    """Measure preparing, opening and predicting 1,000 to 1,000,000 crystals, with the memory they take."""
    counts = [20, 40] if quick else [1_000, 10_000, 100_000, 1_000_000]
    works = ("prepare", "open", "predict")
    times: dict[str, list[float]] = {work: [] for work in works}
    memory: dict[str, list[float]] = {work: [] for work in works}
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = inputs.write_parquet(inputs.table(count, LARGEST_CELL), folder / "crystals.parquet")
            for work in works:
                found = in_own_process(work, data, folder)
                times[work].append(1000 * found["seconds"])
                memory[work].append(found["memory"])
    return {
        "kind": "growth",
        "work": "many crystals, by their number",
        "size": "crystals",
        "sizes": counts,
        "unit": "ms",
        "times": times,
        "memory": memory,
        "slopes": {work: slope(counts, times[work]) for work in ("prepare", "predict")},
        "note": f"cells of up to {LARGEST_CELL} atoms from Parquet, repeated; each in a process of its own, one core",
    }


@torch.no_grad()
def _predicted(network: CrystalGNN, batch: Any) -> Any:
    return network.decode(network(batch))


def _one(work: Callable[[], Any], quick: bool) -> float:
    """Return the milliseconds of one call, best of some rows of calls."""
    work()
    calls = 1 if quick else max(1, int(0.02 / seconds(work)))
    return 1000 / calls * min(seconds(lambda: [work() for _ in range(calls)]) for _ in range(2 if quick else 7))
