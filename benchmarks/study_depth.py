"""The stored study of depth: takes over the table of a finished ``cgnn depth``, and writes docs/depth.md from it.

    cgnn depth configs/depth.yaml -o data.path=../shared/data/elasticity.json.gz --workers 1 --output runs/depth
    python benchmarks/study_depth.py --run runs/depth                             # benchmarks/studies/depth.csv
    python benchmarks/study_depth.py --run runs/depth-formation --name depth_formation
    python benchmarks/study_depth.py --table                                      # the table in docs/depth.md

Every number and every sentence between the markers of docs/depth.md is computed from the stored tables.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study import STUDIES, between_markers, markdown, mean_and_spread

from cgnn.train.depth import cures, read_table, verdicts

Row = dict[str, Any]
DOCUMENT = "docs/depth.md"
NAMES = {"depth": "Moduli (log10 of GPa)", "depth_formation": "Formation energy (eV/atom)"}
"""Stored table -> its title."""


def targets_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of the targets of a table."""
    return [name.removeprefix("test_") for name in rows[0] if name.startswith("test_")]


def errors(rows: Sequence[Row], target: str) -> str:
    """Return the test errors by remedy and depth, mean and standard deviation over the seeds, as Markdown."""
    depths = sorted({row["depth"] for row in rows})
    lines = [["remedy", *map(str, depths)]]
    for remedy in dict.fromkeys(row["remedy"] for row in rows):
        cells = []
        for depth in depths:
            mine = [r for r in rows if (r["remedy"], r["depth"], r["layer"]) == (remedy, depth, 0)]
            values = [row[f"test_{target}"] for row in mine]
            cells.append(mean_and_spread(values))
        lines.append([f"`{remedy}`", *cells])
    return markdown(lines)


def text(rows: Sequence[Row], title: str) -> str:
    """Return tables and sentences of one study as Markdown."""
    names = targets_of(rows)
    networks = {(row["depth"], row["remedy"], row["seed"]) for row in rows}
    seeds = {row["seed"] for row in rows}
    hours = sum(row["seconds"] for row in rows if row["layer"] == 0) / 3600
    parts = [f"**{title}**: {len(networks)} networks, {len(seeds)} seeds, {hours:.1f} hours of training (wall clock)."]
    parts += [f"Test error, {name.replace('_', ' ')}, by layers:\n\n{errors(rows, name)}" for name in names]
    said = [each.text() for each in (*verdicts(rows, names), *cures(rows, names))]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in said)])


def main() -> None:
    """Store a table, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a study, whose depth.csv is stored")
    parser.add_argument("--name", choices=NAMES, default="depth")
    parser.add_argument("--table", action="store_true", help="write the tables instead")
    options = parser.parse_args()
    if options.run is not None:
        read_table(options.run / "depth.csv")  # refuses what is none
        shutil.copyfile(options.run / "depth.csv", STUDIES / f"{options.name}.csv")
    if options.table:
        there = {name: STUDIES / f"{name}.csv" for name in NAMES if (STUDIES / f"{name}.csv").exists()}
        parts = [text(read_table(path), NAMES[name]) for name, path in there.items()]
        between_markers(DOCUMENT, "depth", "\n\n".join(parts))


if __name__ == "__main__":
    main()
