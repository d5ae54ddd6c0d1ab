"""Measures `cgnn` against the usual ways of doing the same work, and how its cost grows.

python benchmarks/run.py                    # all, which takes half an hour
python benchmarks/run.py cif structure      # some
python benchmarks/run.py --quick --output /tmp/results.json
python benchmarks/run.py --readme           # rewrites the tables of README.md and the figure from results.json

Each ratio comes from one run in which baseline and ours take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rows_graphs
import rows_growth
import rows_predict
import rows_store
import rows_training
import tables

HERE = Path(__file__).parent
BENCHMARKS: dict[str, Callable[[bool], Any]] = {
    "cif": rows_graphs.cif_to_graph,
    "cif_symmetry": rows_graphs.cif_with_symmetry_to_graph,
    "cif_default": rows_graphs.cif_to_default_graph,
    "structure": rows_graphs.structure_to_graph,
    "training": rows_training.training,
    "training_flushed": rows_training.training_flushed,
    "training_torch": rows_training.training_torch,
    "training_bf16": rows_training.training_bf16,
    "training_compiled": rows_training.training_compiled,
    "training_gpu": rows_training.training_gpu,
    "predict": rows_predict.predict_files,
    "predict_default": rows_predict.predict_files_default,
    "predict_two_workers": rows_predict.predict_files_two_workers,
    "open": rows_store.opening,
    "open_read": rows_store.opening_and_reading,
    "parquet": rows_predict.from_parquet,
    "growth_atoms": rows_growth.growth_with_atoms,
    "growth_crystals": rows_growth.growth_with_crystals,
}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    packages = ("torch", "torch-geometric", "pymatgen", "numpy")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Run one benchmark and return its row, with date, command and machine."""
    found = BENCHMARKS[name](quick)
    if isinstance(found, str):
        row = {"kind": "skipped", "work": name, "note": found}
    else:
        row = found if isinstance(found, dict) else found.to_dict()
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    command = f"python benchmarks/run.py {name}{' --quick' if quick else ''}"
    return {**row, "date": date, "command": command, "machine": machine()}


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"benchmarks ({', '.join(BENCHMARKS)}); all by default"
    )
    parser.add_argument("--quick", action="store_true", help="a few crystals only, to see that it runs")
    parser.add_argument("--output", type=Path, default=HERE / "results.json", help="rows measured are replaced in it")
    parser.add_argument("--readme", action="store_true", help="measure nothing, write README.md and the figure anew")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(BENCHMARKS)})")
    if chosen.readme:
        tables.write_readme(_read(chosen.output), HERE)
        return
    if chosen.quick and chosen.output == HERE / "results.json":
        parser.error("--quick needs an --output of its own: its figures mean nothing")
    for name in chosen.names or BENCHMARKS:
        row = measure(name, chosen.quick)
        rows = {**_read(chosen.output), name: row}
        ordered = {key: rows[key] for key in BENCHMARKS if key in rows}
        chosen.output.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
        print(tables.line(row), flush=True)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main(sys.argv[1:])
