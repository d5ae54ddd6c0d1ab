"""One piece of work in a process of its own, whose time and memory are said as JSON.

``python benchmarks/child.py prepare|open|predict DATA FOLDER``
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_own_process(work: str, data: Path, folder: Path) -> dict[str, float]:
    """Return the seconds and the peak memory (MiB, above that of the imports) of a piece of work."""
    command = [sys.executable, __file__, work, str(data), str(folder)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(answer.splitlines()[-1]))


def _prepare(data: Path, folder: Path) -> Callable[[], Any]:
    from cgnn.config import DataConfig, GraphConfig
    from cgnn.data.engines import applied
    from cgnn.data.prepare import prepare

    settings = DataConfig(path=str(data), cache=str(folder))
    return lambda: prepare(settings, GraphConfig(), engine=applied("serial"))


def _predict(data: Path, folder: Path) -> Callable[[], Any]:
    import torch
    from models import write_model

    from cgnn.data.records import blocks
    from cgnn.predict import Predictor

    torch.set_num_threads(1)
    predictor = Predictor.load(write_model(folder), "cpu")
    return lambda: predictor.write(blocks(data), folder / "predictions.csv")


WORK = {"prepare": _prepare, "open": _prepare, "predict": _predict}
"""Opening is preparing what is prepared."""


def _memory() -> float:
    """Return the most memory that this process has held so far, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _main(work: str, data: Path, folder: Path) -> None:
    run = WORK[work](data, folder)
    before = _memory()
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "memory": _memory() - before}))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
