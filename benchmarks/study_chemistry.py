"""How well a model does on chemistry it has not seen, by what it is told of the elements.

python benchmarks/study_chemistry.py                                   # all runs that are not in chemistry.jsonl yet
python benchmarks/study_chemistry.py --protocols prototype element-O --rows tabular one_hot
python benchmarks/study_chemistry.py --seeds 3 --workers 2             # three seeds of every protocol
python benchmarks/study_chemistry.py --table                           # writes the tables into docs/chemistry.md

A protocol says which crystals are kept out, a row who learns from the others. Each finished run is one line of
``benchmarks/studies/chemistry.jsonl``, so a study that was interrupted goes on where it stopped. A seed draws the
split (what a protocol leaves open of it), the weights, the order of the crystals and the trees.
"""

from __future__ import annotations

import argparse
import csv
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tabular
from study import DATA, ROOT, STUDIES, between_markers, finished, markdown, mean_and_spread, record

from cgnn.config import Config, load
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.data.split import split

NAME = "chemistry"
DOCUMENT = ROOT / "docs" / "chemistry.md"
CONFIG = ROOT / "configs" / "elasticity.yaml"
FILE = "elasticity.json.gz"
TARGETS = {"bulk_modulus": "log10 K", "shear_modulus": "log10 G"}

SETTINGS = [
    "model.width=64", "model.depth=3", "model.activation=silu", "train.epochs=40", "train.batch_size=64",
    "train.learning_rate=0.003", "train.schedule=one_cycle", "train.loss=mae", "train.ema=0.99", "train.threads=1",
    "train.device=cpu", "model.descriptors=[]", "model.edge_updates=false", "model.spread=false", "model.remedy=none",
]  # fmt: skip
"""The network of every row, whatever the configuration recommends today."""

_SHARES = ["data.split.val=0.1", "data.split.test=0.1"]
ELEMENTS = ("O", "F", "Si", "Fe", "W", "Ce", "C")
PROTOCOLS: dict[str, list[str]] = {
    "random": ["data.split.method=random", *_SHARES],
    "composition": ["data.split.method=composition", *_SHARES],
    "chemical_system": ["data.split.method=chemical_system", *_SHARES],
    "prototype": ["data.split.method=prototype", *_SHARES],
    "hardest": ["data.split.method=extrapolation", "data.split.target=shear_modulus", *_SHARES],
    **{f"element-{e}": ["data.split.method=element", f"data.split.element={e}", _SHARES[0]] for e in ELEMENTS},
}
"""Name -> how crystals are divided; the test part is scored."""

_DESCRIBED = "model.descriptors=[element_statistics, volume]"
_DESCRIBED_FULLY = "model.descriptors=[element_statistics, volume, environments, arrangements, stoichiometry]"
NETWORKS: dict[str, list[str]] = {
    "properties": ["model.elements=[properties]", "model.descriptors=[]"],
    "one_hot": ["model.elements=[one_hot]", "model.descriptors=[]"],
    "both": ["model.elements=[one_hot, properties]", "model.descriptors=[]"],
    "descriptors": ["model.elements=[one_hot, properties]", _DESCRIBED],
    "kernel": ["model.head=kernel_ridge", "model.depth=0", _DESCRIBED_FULLY],
}
"""Row -> what its network is told of the elements; the last one has no network."""
TREES, MEAN = "tabular", "mean"
ROWS = (*NETWORKS, TREES)
"""What is run; ``descriptors`` also gives the row ``mean``, of its network and the trees."""
TITLES = {
    "properties": "element properties", "one_hot": "one-hot elements", "both": "both",
    "descriptors": "both and descriptors", TREES: "trees, no network", MEAN: "mean of the last two",
    "kernel": "kernel ridge, no network",
}  # fmt: skip
SEEDS = {"random": 3, "chemical_system": 3}
"""Seeds of a protocol where it is not one."""

Line = dict[str, Any]


def settings(protocol: str, row: str, seed: int, extra: Sequence[str] = (), data: str | Path = DATA / FILE) -> Config:
    """Return the settings of a run."""
    seeds = [f"data.split.seed={seed}", f"train.seed={seed}"]
    changes = [f"data.path={data}", *SETTINGS, *PROTOCOLS[protocol], *NETWORKS.get(row, []), *seeds, *extra]
    return load(CONFIG, changes)


def run(protocol: str, row: str, seed: int, extra: Sequence[str] = (), data: str | Path = DATA / FILE) -> list[Line]:
    """Do one run and return its lines."""
    import torch

    torch.set_num_threads(1)
    config = settings(protocol, row, seed, extra, data)
    started = time.perf_counter()
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    if row == TREES:
        parts = split(config.data.split, dataset.summaries(config.data.split))
        test, train = dataset.indices(parts.test), dataset.indices(parts.train)
        found = {TREES: _trees(dataset, train, test, seed)}
    else:
        test, train, guesses = _network(config, dataset)
        found = {row: guesses}
        if row == "descriptors":
            trees = _trees(dataset, train, test, seed)
            # the mean on the scale on which moduli are learned is the geometric mean of the moduli
            found[MEAN] = {name: np.sqrt(values * trees[name]) for name, values in guesses.items()}
    seconds = round(time.perf_counter() - started, 1)
    head = {"protocol": protocol, "seed": seed, "n": len(test), "trained": len(train)}
    return [
        {**head, "row": name, **_errors(dataset, train, test, guesses), "seconds": seconds}
        for name, guesses in found.items()
    ]


def _trees(dataset: CrystalDataset, train: Any, test: Any, seed: int) -> dict[str, Any]:
    return tabular.predict(tabular.crystal_features(dataset), dataset, train, test, seed=seed)


def _network(config: Config, dataset: CrystalDataset) -> tuple[Any, Any, dict[str, Any]]:
    """Train a network and return the crystals of test and training, and the predictions of the former."""
    from cgnn.train import train

    with tempfile.TemporaryDirectory() as folder:
        result = train(config, Path(folder) / "run")
        with open(result.folder / "predictions.csv", newline="") as handle:
            rows = [row for row in csv.DictReader(handle) if row["part"] == "test"]
    test = dataset.indices([row["material_id"] for row in rows])
    guesses = {name: np.array([float(row[name]) for row in rows]) for name in TARGETS}
    return test, dataset.indices(result.split.train), guesses


def _errors(dataset: CrystalDataset, train: Any, test: Any, guesses: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean absolute error by target on the learned scale, and that of the mean of training."""
    found = {}
    for target in dataset.targets:
        truth = target.to_learned(dataset.label(target, test))
        mean = np.nanmean(target.to_learned(dataset.label(target, train)))
        found[target.name] = round(float(np.nanmean(np.abs(target.to_learned(guesses[target.name]) - truth))), 5)
        found[f"{target.name}_baseline"] = round(float(np.nanmean(np.abs(mean - truth))), 5)
    return found


def jobs(protocols: Sequence[str], rows: Sequence[str], seeds: int | None, there: Sequence[Line]) -> list[Any]:
    """Return the runs (protocol, row, seed) that are not there yet, all protocols' first seeds before the second."""
    done = {(line["protocol"], line["row"], line["seed"]) for line in there}
    wanted = [(p, row, seed) for p in protocols for row in rows for seed in range(seeds or SEEDS.get(p, 1))]
    return sorted((job for job in wanted if job not in done), key=lambda job: job[2])


def table(lines: Sequence[Line], target: str) -> str:
    """Return one target's errors as a Markdown table; the best of a protocol is bold."""
    out = [["kept out", "crystals", "mean of training", *TITLES.values(), "seeds"]]
    for protocol in PROTOCOLS:
        mine = [line for line in lines if line["protocol"] == protocol]
        if not mine:
            continue
        errors = {row: [line[target] for line in mine if line["row"] == row] for row in TITLES}
        best = min((np.mean(values) for values in errors.values() if values), default=np.nan)
        cells = [_cell(values, best) for values in errors.values()]
        size, level = np.mean([line["n"] for line in mine]), np.mean([line[f"{target}_baseline"] for line in mine])
        seeds = len({line["seed"] for line in mine})
        out.append([_title(protocol), f"{size:.0f}", f"{level:.3f}", *cells, str(seeds)])
    return markdown(out)


def _cell(values: Sequence[float], best: float) -> str:
    text = mean_and_spread(values)
    return re.sub(r"^[\d.]+", r"**\g<0>**", text) if values and np.mean(values) == best else text


def _title(protocol: str) -> str:
    if protocol.startswith("element-"):
        return f"all with {protocol.removeprefix('element-')}"
    return {"hardest": "the stiffest tenth (G)"}.get(protocol, protocol.replace("_", " "))


def advice(lines: Sequence[Line]) -> str:
    """Return in words what the errors say: which row to choose for which protocol, and what unseen chemistry costs."""
    said = []
    for kind, protocols in _kinds().items():
        means = {row: _over(lines, protocols, row) for row in TITLES}
        ranked = sorted((row for row in means if np.isfinite(means[row])), key=means.__getitem__)
        if len(ranked) < 2:
            continue
        first, second = ranked[:2]
        gap = means[second] / means[first] - 1
        cost = means[first] / _over(lines, ["random"], first) - 1
        text = f"- **{kind}**: {TITLES[first]}, then {TITLES[second]} ({gap:+.1%})"
        text += f"; {cost:+.0%} against a random tenth." if kind != "a random tenth" and np.isfinite(cost) else "."
        properties, one_hot = (means[row] for row in ("properties", "one_hot"))
        if np.isfinite(properties + one_hot):
            text += f" One-hot elements alone against properties alone: {one_hot / properties - 1:+.0%}."
        said.append(text)
    head = "By the mean over K and G of the error (and over the elements left out), the best first:"
    return "\n".join([head, "", *said]) if said else ""


def _kinds() -> dict[str, list[str]]:
    return {
        "a random tenth": ["random"],
        "new compositions": ["composition"],
        "new chemical systems": ["chemical_system"],
        "new prototypes": ["prototype"],
        "new elements": [f"element-{element}" for element in ELEMENTS],
        "stiffer than anything seen": ["hardest"],
    }


def _over(lines: Sequence[Line], protocols: Sequence[str], row: str) -> float:
    """Return the mean error of a row over protocols, targets and seeds; ``nan`` where a protocol is missing."""
    means = []
    for protocol in protocols:
        found = [line[t] for line in lines if (line["protocol"], line["row"]) == (protocol, row) for t in TARGETS]
        means.append(np.mean(found) if found else np.nan)
    return float(np.mean(means))


def write_tables(path: Path = DOCUMENT, lines: Sequence[Line] | None = None) -> None:
    """Write tables and advice between the markers of the document."""
    lines = finished(STUDIES / f"{NAME}.jsonl") if lines is None else lines
    pieces = [f"Mean absolute error of {title}:\n\n{table(lines, target)}" for target, title in TARGETS.items()]
    between_markers(str(path), NAME, "\n\n".join([*pieces, advice(lines)]))


def main() -> None:
    """Run the study or write its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocols", nargs="+", choices=list(PROTOCOLS), default=list(PROTOCOLS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--seeds", type=int, help="of every protocol; by default 3 for random and chemical_system, else 1"
    )
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--table", action="store_true", help="write the tables instead")
    asked = parser.parse_args()
    path = STUDIES / f"{NAME}.jsonl"
    if asked.table:
        write_tables()
    else:
        record(path, run, jobs(asked.protocols, asked.rows, asked.seeds, finished(path)), asked.workers)


if __name__ == "__main__":
    main()
