"""From files to predictions, end to end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import baselines
import inputs
import torch
from clock import Ratio, alternate, compare, seconds
from models import write_model

from cgnn.config import GraphConfig
from cgnn.data.records import blocks
from cgnn.predict import Predictor

AGAINST = "`CifParser`, `get_all_neighbors`, PyG `CGConv` network in batches of 256"


def predict_files(quick: bool) -> Ratio:
    """Measure CIF files to a CSV table, one process and one thread each."""
    return _one_process(quick, baselines.TWELVE, "predict, CIF files to CSV, 12 nearest, one process each", 50)


def predict_files_default(quick: bool) -> Ratio:
    """Measure the same with the graphs that `cgnn` makes if nothing else is asked for."""
    return _one_process(quick, GraphConfig(), "the same, our default graph (twice the edges, smooth)", None)


def predict_files_two_workers(quick: bool) -> Ratio:
    """Measure the same with two worker processes of ours, their start included."""
    ours, theirs = (8, 4) if quick else (21_000, 300)
    work = "the same, 12 nearest, ours with two worker processes"
    return _predicted(theirs, ours, baselines.TWELVE, 2, 2 if quick else 3, work, None)


def from_parquet(quick: bool) -> dict[str, Any]:
    """Measure 100,000 crystals from Parquet to predictions by the command line, everything included."""
    count = 20 if quick else 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = inputs.write_parquet(inputs.table(count), folder / "crystals.parquet")
        output = folder / "predictions.csv"
        command = [sys.executable, "-m", "cgnn.cli", "predict", str(write_model(folder)), str(data)]
        best = min(
            seconds(lambda: subprocess.run([*command, "--output", str(output)], check=True, capture_output=True))
            for _ in range(1 if quick else 2)
        )
        with open(output) as handle:
            rows = sum(1 for _ in handle) - 1
    work = f"{count:,} crystals from Parquet to predictions, `cgnn predict`, all cores"
    return {"kind": "seconds", "work": work, "seconds": best, "crystals": rows, "per_second": rows / best}


def _one_process(quick: bool, graph: GraphConfig, work: str, floor: float | None) -> Ratio:
    theirs, ours = (4, 4) if quick else (300, 3000)
    return _predicted(theirs, ours, graph, 1, 2 if quick else 5, work, floor)


def _predicted(
    theirs: int, ours: int, graph: GraphConfig, workers: int, rounds: int, work: str, floor: float | None
) -> Ratio:
    torch.set_num_threads(1)
    network = baselines.CGConvNet().eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = inputs.cif_texts(inputs.structures(theirs))
        cifs = inputs.write_cifs([texts[number % theirs] for number in range(ours)], folder / "cifs")
        some = sorted(cifs.iterdir())[:theirs]
        predictor = Predictor.load(write_model(folder, graph), "cpu")
        engine = "serial" if workers == 1 else "processes"

        def predicted() -> None:
            rows, _, _ = predictor.write(blocks(cifs), folder / "ours.csv", engine, workers)
            assert rows > 0.99 * ours, f"only {rows} of {ours} crystals were predicted"

        times = alternate(
            lambda: seconds(lambda: baselines.predict_files(network, some, folder / "theirs.csv")),
            lambda: seconds(predicted),
            rounds,
        )
    note = f"{theirs:,} files by the baseline, {ours // theirs} copies of each by ours; {inputs.source()}"
    return compare(work, AGAINST, "ms per crystal", times, (1000 / theirs, 1000 / ours), floor, note)
