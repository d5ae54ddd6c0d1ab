"""Derived hardness against measured Vickers hardness, from true and from predicted moduli.

python benchmarks/study_vickers.py --run runs/cv/fold-0 --run runs/cv/fold-1 ...   # the test parts of folds together
python benchmarks/study_vickers.py --table                                         # writes it into docs/physics.md

The measured values are those of ``benchmarks/studies/vickers.csv`` (GPa, with the load in N). Nearly all are from the
collection of Zhang et al., Adv. Mater. 33, 2005112 (2021), which is public on GitHub
(ziyan1996/VickersHardnessPrediction, hv_comp_load.csv): its stoichiometric compounds with a nonmetal that are among the
moduli, at the load nearest to 1 N. Four are from Ramprasad-Group/polyVERSE (only_exp_data.csv), and BP and Al2O3 are
single values from web pages. They name compositions, not crystals: where several crystals have one composition, it is
the one of lowest formation energy. Measurements differ by tens of per cent with load and sample, so this says how large
errors are and no more. Only crystals count that none of the networks which predict them has learned from. Errors of
the means are standard deviations over 1,000 draws of the crystals with replacement.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from study import STUDIES, between_markers
from study_screening import Pool, joined, pool_of

from cgnn.physics import RELATIONS

MEASURED, RESULT = STUDIES / "vickers.csv", STUDIES / "vickers.json"
DOCUMENT, NAME = "docs/physics.md", "vickers"
HARDNESS = [name for name in RELATIONS if name.startswith("hardness_")]
RESAMPLES = 1000


def measured() -> dict[str, tuple[str, float]]:
    """Return id -> formula and measured hardness (GPa)."""
    with open(MEASURED, newline="", encoding="utf-8") as file:
        return {row["material_id"]: (row["formula"], float(row["hardness"])) for row in csv.DictReader(file)}


def compare(pool: Pool, values: Mapping[str, tuple[str, float]], seed: int = 0) -> dict[str, Any]:
    """Return the mean absolute errors (GPa) of each relation, from true and from predicted moduli, and their gap.

    ``apart`` is how far the values from predicted moduli are from those of true ones: errors may cancel in the gap.
    """
    rows = np.array([row for row, name in enumerate(pool["id"].tolist()) if name in values], dtype=np.int64)
    truth = np.array([values[name][1] for name in pool["id"][rows].tolist()])
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    relations = {}
    for name in HARDNESS:
        relation = RELATIONS[name]
        derived = {
            source: relation.function(*(pool[f"{prefix}{need}"][rows] for need in relation.needs))
            for source, prefix in (("true", "true_"), ("predicted", ""))
        }
        errors = {source: np.abs(values - truth) for source, values in derived.items()}
        errors["added"] = errors["predicted"] - errors["true"]
        errors["apart"] = np.abs(derived["predicted"] - derived["true"])
        relations[name] = {
            source: [float(each.mean()), float(each[draws].mean(axis=1).std(ddof=1))] for source, each in errors.items()
        }
    return {"crystals": len(rows), "mean": float(truth.mean()), "relations": relations}


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        f"Mean absolute error (GPa) over {result['crystals']} crystals with a measured Vickers hardness (its mean: "
        f"{result['mean']:.1f} GPa), {result['source']}:",
        "",
        "| relation | from true moduli | from predicted ones | added by the network | predicted from true |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, errors in result["relations"].items():
        cells = [f"{errors[source][0]:.2f} ± {errors[source][1]:.2f}" for source in ("true", "predicted")]
        added = "{:+.2f} ± {:.2f}".format(*errors["added"])
        apart = "{:.2f} ± {:.2f}".format(*errors["apart"])
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} | {added} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    """Compare or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", default=[], help="run folder; repeat for folds")
    parser.add_argument("--parts", nargs="+", default=["test"], choices=["val", "test"])
    parser.add_argument("--table", action="store_true", help="write the table instead")
    arguments = parser.parse_args()
    if arguments.table:
        between_markers(DOCUMENT, NAME, table(json.loads(RESULT.read_text())))
        return
    if not arguments.run:
        parser.error("--run: give a run folder, or several")
    result = compare(joined([pool_of(run, arguments.parts) for run in arguments.run]), measured())
    count = len(arguments.run)
    result["source"] = f"predicted by {count} network{'s' if count > 1 else ''}, each of crystals that it did not see"
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
