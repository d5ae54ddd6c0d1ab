"""How accurate the recipe is on crystals it never saw: one network, ensembles of several forms, trees.

python benchmarks/study_accuracy.py                               # what is not in accuracy.jsonl yet
python benchmarks/study_accuracy.py --protocols random --seeds 0 --recipes "six layers"
python benchmarks/study_accuracy.py --table                       # the tables of docs/accuracy.md and README.md

A tenth of the moduli chooses the epochs and calibrates, another tenth is the test part, both drawn by the seed. Each
line of ``benchmarks/studies/accuracy.jsonl`` is one recipe, protocol and seed; fits are kept in ``runs/accuracy`` and
go on after an interruption. By hand: ``cgnn train configs/elasticity.yaml -o data.path=FILE
-o data.split.method=PROTOCOL -o data.split.test=0.1 -o data.split.seed=S --seed S --members 6``, with the changes of
`RECIPES`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tabular
from study import DATA, ROOT, STUDIES, between_markers, finished, markdown, mean_and_spread, record

from cgnn.config import Config, load

NAME, DOCUMENT = "accuracy", "docs/accuracy.md"
FILE = "elasticity.json.gz"
TARGETS = {"bulk_modulus": "log10 K", "shear_modulus": "log10 G"}
FOUR = "{depth: 4, remedy: none}"
TREES = (
    "{head: trees, depth: 0, remedy: none, edge_updates: false, spread: false, "
    "descriptors: [element_statistics, volume, environments, arrangements, stoichiometry]}"
)
HINTS = ("transfer.init_from=formation_energy", "transfer.take=[]", "transfer.hints=true")


class Recipe(NamedTuple):
    """A configuration and what is changed of it; a recipe may take members of the same form from another one."""

    changes: tuple[str, ...] = ()
    members: int = 5
    after: str = ""
    config: str = "configs/elasticity.yaml"


RECIPES = {
    "six and four layers, kernels": Recipe(members=6, after="six and four layers"),
    "six and four layers, hints, kernels": Recipe(HINTS, 6, "six and four layers, hints"),
    "six and four layers": Recipe((f"ensemble.models=[{{}}, {FOUR}]",)),
    "six and four layers, trees": Recipe(
        (f"ensemble.models=[{{}}, {FOUR}, {{}}, {FOUR}, {{}}, {TREES}]",), 6, "six and four layers"
    ),
    "six and four layers, hints": Recipe((f"ensemble.models=[{{}}, {FOUR}]", *HINTS)),
    "six layers": Recipe(("ensemble=null",)),
    "four layers": Recipe(("ensemble=null", "model.depth=4", "model.remedy=none")),
    "kernel": Recipe(members=1, config="configs/elasticity-kernel.yaml"),
    "fast, kernels": Recipe(members=3, after="fast", config="configs/elasticity-fast.yaml"),
    "fast": Recipe(("ensemble=null",), config="configs/elasticity-fast.yaml"),
}
"""The first is the recommended one."""
PROTOCOLS = ("random", "chemical_system")
RUNS = ROOT / "runs" / "accuracy"
INTERVALS = {"coverage_90": "90 % coverage", "width_90_log10": "width", "baseline_width_90_log10": "constant width"}


def run(name: str, protocol: str, seed: int) -> dict[str, Any]:
    """Train an ensemble of a recipe under a protocol, or go on with it, and return its line."""
    from cgnn.data.dataset import CrystalDataset
    from cgnn.data.prepare import prepare
    from cgnn.train import train, train_ensemble
    from cgnn.train.checkpoint import load_model
    from cgnn.train.ensembles.ensemble import Ensemble
    from cgnn.train.trust.assess import combined_part

    recipe, folder = RECIPES[name], place(name, protocol, seed)
    settings = [f"data.split.method={protocol}", "data.split.test=0.1", f"data.split.seed={seed}", f"train.seed={seed}"]
    common = [f"data.path={DATA / FILE}", "train.threads=1", "train.device=cpu"]
    config = load(ROOT / recipe.config, [*common, *settings, *recipe.changes])
    if recipe.after and not folder.exists():
        take_members(config, recipe, place(recipe.after, protocol, seed), folder)
    if recipe.members == 1:
        result = train(config, folder, resume=folder.exists())
    else:
        result = train_ensemble(config, folder, Ensemble(recipe.members, side_by_side="serial"), folder.exists())
    members = load_model(result.model_file).members
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    train, test = (dataset.indices(getattr(result.split, part)) for part in ("train", "test"))
    guessed = tabular.predict(tabular.crystal_features(dataset), dataset, train, test, seed=seed)
    together = combined_part(members, dataset, test)
    each = [combined_part([member], dataset, test) for member in members if not member.config.is_fitted_at_once]
    line: dict[str, Any] = {"recipe": name, "protocol": protocol, "seed": seed, "minutes": round(minutes(folder), 1)}
    for target in config.targets:
        truth = target.to_learned(dataset.label(target, test))
        found = {
            "trees": _error(truth, target.to_learned(guessed[target.name])),
            "ensemble": _error(truth, together.learned[target.name].value.numpy()),
        }
        if each:
            found["single"] = float(np.mean([_error(truth, one.learned[target.name].value.numpy()) for one in each]))
        scores = result.metrics["test"][target.name]
        line[target.name] = {k: round(v, 5) for k, v in found.items()} | {k: round(scores[k], 4) for k in INTERVALS}
    return line


def place(name: str, protocol: str, seed: int) -> Path:
    """Return where a fit is kept, and goes on after an interruption."""
    return RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-{protocol}-{seed}"


def take_members(config: Config, recipe: Recipe, others: Path, folder: Path) -> None:
    """Copy the members of another recipe's fit, as far as it exists, that have the form of ours."""
    theirs = load(ROOT / RECIPES[recipe.after].config, RECIPES[recipe.after].changes)
    for number in map(str, range(recipe.members)):
        is_same = config.of_member(int(number)).model == theirs.of_member(int(number)).model
        if is_same and (others / "members" / number).exists():
            shutil.copytree(others / "members" / number, folder / "members" / number)


def minutes(folder: Path) -> float:
    """Return how long the epochs of all members took, also where they were fitted in several goes."""
    histories = [path.read_text().splitlines() for path in folder.rglob("history.jsonl")]
    return sum(json.loads(row)["seconds"] for history in histories for row in history) / 60


def _error(truth: Any, value: Any) -> float:
    known = np.isfinite(truth)
    return float(np.abs(truth - value)[known].mean())


def tables(lines: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the study as Markdown tables of errors and of intervals."""
    rows = [["split", "recipe", "model", *TARGETS.values(), "seeds", "minutes"]]
    widths = [["split", "recipe", "of", *INTERVALS.values()]]
    for protocol, name in product(PROTOCOLS, RECIPES):
        mine = [line for line in lines if (line["protocol"], line["recipe"]) == (protocol, name)]
        if not mine:
            continue
        split = protocol.replace("_", " ")
        for row, title in titles(RECIPES[name]).items():
            if row == "trees" and any(known[0] == split for known in rows):
                continue  # they are the same beside every recipe
            cells = [mean_and_spread([line[target][row] for line in mine]) for target in TARGETS]
            shared = {"trees": 0, "single": RECIPES[name].members, "ensemble": 1}[row]
            spent = float(np.mean([line["minutes"] for line in mine])) / shared if shared else None
            took = "" if spent is None else f"{spent:.0f}" if spent >= 1 else f"{spent:.1f}"
            rows.append([split, "" if row == "trees" else name, title, *cells, str(len(mine)), took])
        for target, title in TARGETS.items():
            cells = [mean_and_spread([line[target][key] for line in mine], 3) for key in INTERVALS]
            widths.append([split, name, title, *cells])
    return markdown(rows), markdown(widths)


def titles(recipe: Recipe) -> dict[str, str]:
    """Return what the rows of a recipe are called."""
    trees = {"trees": "trees over composition and volume (`benchmarks/tabular.py`)"}
    config = load(ROOT / recipe.config, recipe.changes)
    forms = [config.of_member(member).model.head for member in range(recipe.members)]
    if forms == ["kernel_ridge"]:
        return trees | {"ensemble": "kernel ridge regression, no network"}
    if set(forms) != {"layers"}:
        named = {"layers": "networks", "trees": "of boosted trees", "kernel_ridge": "of kernel ridge regression"}
        return trees | {"ensemble": " and ".join(f"{n} {named[head]}" for head, n in Counter(forms).items())}
    single = f"one network, mean of the {recipe.members} members' errors"
    return trees | {"single": single, "ensemble": f"{recipe.members} networks"}


def main() -> None:
    """Run the study or write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--protocols", nargs="*", choices=PROTOCOLS, default=PROTOCOLS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--table", action="store_true", help="write the table instead")
    arguments = parser.parse_args()
    path = STUDIES / f"{NAME}.jsonl"
    if arguments.table:
        errors, intervals = tables(finished(path))
        between_markers(DOCUMENT, NAME, f"{errors}\n\n{intervals}")
        between_markers("README.md", NAME, errors)
        return
    there = {(line["recipe"], line["protocol"], line["seed"]) for line in finished(path)}
    wanted = product(arguments.recipes, arguments.seeds, arguments.protocols)
    jobs = [(r, p, seed) for r, seed, p in wanted if (r, p, seed) not in there]
    record(path, run, jobs, arguments.workers)


if __name__ == "__main__":
    main()
