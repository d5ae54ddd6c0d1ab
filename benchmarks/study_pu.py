"""Ways of learning from positives and unlabelled crystals, on a proxy with a known truth and on real data.

python benchmarks/proxy_pu.py                                        # writes the proxy
python benchmarks/tabular_pu.py -o data.path=runs/pu/proxy.parquet -o pu.column=label --truth truth    # baselines
python benchmarks/study_pu.py proxy                                  # all rows that are not in pu.jsonl yet
python benchmarks/study_pu.py synthesizability "trees, spies"        # some
python benchmarks/study_pu.py proxy "layers, nnpu" -o train.epochs=1 # a trial in a folder of its own; not recorded
python benchmarks/tabular_pu.py --table                              # writes docs/synthesizability-figures.md

The study is ``benchmarks/studies/pu.yaml``: data sets, classifiers, and by row what it changes of one of these. Each
finished fit is one line of ``pu.jsonl``, beside the baselines' with the same held-out positives; one that was
interrupted goes on in its folder, and its time is then that of the last part.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from study import DATA, ROOT, STUDIES, finished
from tabular_pu import NAME, Tables, described

from cgnn.config import load
from cgnn.train.pu import PURun, pu_fit


def data_path(entry: dict[str, Any]) -> str:
    """Return where a data set of the study lies, from here: in the project if made there, else among the real data."""
    inside = ROOT / entry["path"]
    return os.path.relpath(inside if inside.exists() else DATA / entry["path"])


def prior(lines: list[dict[str, Any]], data: str) -> float:
    """Return what the trees' scores say of the share of positives among the unlabelled.

    Raises:
        SystemExit: There is no line of the trees yet.
    """
    found = [line["alpha_best_bin"] for line in lines if (line["data"], line["row"]) == (data, "trees")]
    if not found:
        raise SystemExit(f"{data}: the prior comes from the trees; run benchmarks/tabular_pu.py first")
    return float(found[-1])


def classifier(study: dict[str, Any], row: str) -> dict[str, Any]:
    """Return the configuration of a row's classifiers, and what all rows with such classifiers change of it."""
    found: dict[str, Any] = study["classifiers"][study["rows"][row]["of"]]
    return found


def overrides(study: dict[str, Any], data: str, row: str, lines: list[dict[str, Any]]) -> list[str]:
    """Return what a row changes of the study's settings."""
    entry = study["data"][data]
    path = data_path(entry)
    changes = [*entry["common"], *classifier(study, row)["common"], *study["rows"][row]["changes"]]
    if any("PRIOR" in change for change in changes):
        stated = f"{prior(lines, Path(path).stem):g}"
        changes = [change.replace("PRIOR", stated) for change in changes]
    return [f"data.path={path}", *changes]


def tables(run: PURun) -> Tables:
    """Return scores of held-out positives and of unlabelled crystals."""
    return tuple(pd.DataFrame(side.columns()) for side in (run.heldout, run.scores))


def fit_row(study: dict[str, Any], row: str, asked: argparse.Namespace, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit one row and return its line."""
    changes = [*overrides(study, asked.data, row, lines), *asked.overrides]
    file = classifier(study, row)["config"]
    config = load(ROOT / file, changes)
    trial = "trials" if asked.overrides else "rows"
    folder = asked.folder / asked.data / trial / row.replace(",", "").replace(" ", "_")
    started = time.perf_counter()
    run = pu_fit(config, folder, folder.exists(), asked.side_by_side, asked.workers)
    line = described(row, tables(run), config, run.plan, study["data"][asked.data].get("truth"), asked.published)
    words = [word for change in changes for word in ("-o", change)]
    command = shlex.join(["cgnn", "pu", "fit", file, *words, "--output", os.path.relpath(folder, ROOT)])
    return line | {"seconds": round(time.perf_counter() - started, 1), "command": command}


def main() -> None:
    """Run the rows that are missing."""
    study = yaml.safe_load((STUDIES / f"{NAME}.yaml").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(study["data"]))
    parser.add_argument("rows", nargs="*", help="all by default")
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="a trial with other settings")
    parser.add_argument("--published", type=Path, help="CSV with material_id and clscore, for the rank correlation")
    parser.add_argument("--side-by-side", default="auto", help="as for cgnn pu fit")
    parser.add_argument("--workers", type=int, default=0, help="as for cgnn pu fit")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "pu")
    parser.add_argument("--lines", type=Path, default=STUDIES / f"{NAME}.jsonl")
    asked = parser.parse_args()
    unknown = set(asked.rows) - set(study["rows"])
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(study['rows'])}")
    stem = Path(study["data"][asked.data]["path"]).stem
    for row in asked.rows or study["rows"]:
        lines = finished(asked.lines)
        if not asked.overrides and (stem, row) in {(line["data"], line["row"]) for line in lines}:
            continue
        line = fit_row(study, row, asked, lines)
        print(json.dumps(line), flush=True)
        if not asked.overrides:
            with asked.lines.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
