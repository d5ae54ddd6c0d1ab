"""How many evaluations it takes to find the hardest crystals: active learning against random choice.

python benchmarks/active_learning.py                                     # 4 ways, 3 seeds, all crystals of the data
python benchmarks/active_learning.py value --seeds 1 --crystals 300 --rounds 3 --epochs 5      # a tiny try
python benchmarks/active_learning.py --table                             # writes the table into docs/screening.md

The true moduli of elasticity.json.gz stand in for measurements; the property is Mazhnik and Oganov's hardness, metals
left out. A round trains a network from scratch on what is known, ranks all others by draws of its errors, and asks for
the first of them. Each finished simulation is one line of ``benchmarks/studies/active.jsonl``; one that was stopped
goes on with the rounds that are in ``--work``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from study import DATA, ROOT, STUDIES, between_markers, finished, mean_and_spread

from cgnn.config import load
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.physics import derive, is_metal
from cgnn.screen.active import Simulation, network_learner, simulate

RESULTS = STUDIES / "active.jsonl"
DOCUMENT, NAME = "docs/screening.md", "active"
CONFIG = ROOT / "configs" / "elasticity-fast.yaml"
WAYS = ("value", "lower_bound", "probability", "expected_improvement")
SHARES = (0.5, 0.8)
PLAN = ("start", "batch", "rounds", "share", "epochs")
"""What makes simulations comparable, beside their crystals."""
SETTINGS = ["data.split.val=0.15", "data.split.test=0.0", "train.threads=1", "train.device=cpu", "model.spread=true"]


def crystals_of(dataset: CrystalDataset, number: int | None, seed: int) -> tuple[Any, Any]:
    """Return the crystals that take part, no metals, and their true hardness."""
    bulk, shear = (dataset.label(target) for target in dataset.targets)
    bound = np.array([not is_metal(crystal.composition) for crystal in dataset.summaries()])
    usable = np.flatnonzero(bound & (bulk > 0) & (shear > 0))
    if number is not None and number < len(usable):
        usable = np.sort(np.random.default_rng(seed).choice(usable, number, replace=False))
    return usable, derive(bulk[usable], shear[usable], names=["hardness_mo"])["hardness_mo"]


def run(by: str, seed: int, arguments: argparse.Namespace, data: str | Path) -> dict[str, Any]:
    """Do one simulation and return its line."""
    changes = [f"data.path={data}", *SETTINGS, f"train.epochs={arguments.epochs}", f"train.seed={seed}"]
    config = load(CONFIG, [*changes, *arguments.override])
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    rows, truth = crystals_of(dataset, arguments.crystals, 0)
    plan = {name: getattr(arguments, name) for name in PLAN}
    place = arguments.work / "-".join(map(str, [by, seed, len(rows), *plan.values()]))
    learn = network_learner(config, dataset, rows, place)
    steps = {name: plan[name] for name in ("start", "batch", "rounds", "share")}
    found = simulate(truth, learn, by, **steps, seed=seed)
    return {"by": by, "seed": seed, **plan, **vars(found)}


def table(lines: list[dict[str, Any]]) -> str:
    """Return how many evaluations each way took, mean over seeds, beside the mean of random order."""
    sizes = sorted({(line["size"], line["best"], line["start"], line["batch"], line["epochs"]) for line in lines})
    out = []
    for size, best, start, batch, epochs in sizes:
        key = {"size": size, "start": start, "batch": batch, "epochs": epochs}
        mine = [line for line in lines if all(line[name] == value for name, value in key.items())]
        last = min(line["evaluated"][-1] for line in mine)
        out += [
            f"{size:,} crystals, of which the {best} hardest are looked for; {start} known at first, {batch} more each "
            f"round, {epochs} epochs.",
            "",
            f"| ranking | {' | '.join(f'{share:.0%} found after' for share in SHARES)} | found after {last} | seeds |",
            "| " + " | ".join(["---"] * (len(SHARES) + 3)) + " |",
        ]
        for by in dict.fromkeys(line["by"] for line in mine):
            runs = [_simulation(line) for line in mine if line["by"] == by]
            cells = [_cell([run.needed(share) for run in runs]) for share in SHARES]
            cells.append(f"{_cell([run.found[run.evaluated.index(last)] for run in runs])} of {best}")
            out.append(f"| {by} | {' | '.join(cells)} | {len(runs)} |")
        order = Simulation(size, best, (), ())
        cells = [f"{order.needed_at_random(share):.0f}" for share in SHARES]
        out.append(f"| random order | {' | '.join(cells)} | {best * last / size:.1f} of {best} | exact |")
        out.append("")
    return "\n".join(out).strip()


def _simulation(line: dict[str, Any]) -> Simulation:
    return Simulation(line["size"], line["best"], tuple(line["evaluated"]), tuple(line["found"]))


def _cell(numbers: list[float]) -> str:
    if not np.isfinite(numbers).all():
        return "not in all runs"
    return mean_and_spread(numbers, 0)


def main() -> None:
    """Do the simulations or write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", default=list(WAYS), help="rankings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--crystals", type=int, help="so many at most")
    parser.add_argument("--start", type=int, default=100)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("runs/active"))
    parser.add_argument("-o", "--override", action="append", default=[])
    parser.add_argument("--table", action="store_true", help="write the table instead")
    arguments = parser.parse_args()
    if arguments.table:
        between_markers(DOCUMENT, NAME, table(finished(RESULTS)))
        return
    same = {"crystals_asked": arguments.crystals} | {name: getattr(arguments, name) for name in PLAN}
    done = [line for line in finished(RESULTS) if all(line[name] == value for name, value in same.items())]
    there = {(line["by"], line["seed"]) for line in done}
    for seed in range(arguments.seeds):
        for by in arguments.ways:
            if (by, seed) in there:
                continue
            line = run(by, seed, arguments, DATA / "elasticity.json.gz") | {"crystals_asked": arguments.crystals}
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
