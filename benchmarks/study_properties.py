"""What several properties in one model give: formation energy, gap and both moduli together, and in pairs.

python benchmarks/study_properties.py             # what is not in properties.jsonl yet
python benchmarks/study_properties.py --seeds 0
python benchmarks/study_properties.py --table     # writes the table into docs/transfer.md

The seed draws the parts of all crystals, and each model has its own crystals of them: one that predicts moduli is
scored on the same crystals, whether it knows energies or not. Each finished model is a line of ``properties.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from study import DATA, ROOT, STUDIES, between_markers, finished, markdown, mean_and_spread, record

from cgnn.config import Config, load
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.data.split import split
from cgnn.files import write_json
from cgnn.train import train

NAME, DOCUMENT = "properties", "docs/transfer.md"
CONFIG = "configs/four-properties.yaml"
MODULI, ENERGIES = "elasticity.json.gz", "formation_energy.parquet"
MODELS: dict[str, tuple[str, tuple[str, ...], list[str]]] = {
    "all four in one model": (CONFIG, (MODULI, ENERGIES), []),
    "formation energy and gap, the same network": (
        "configs/formation_energy.yaml",
        (ENERGIES,),
        ["model.width=64", "model.descriptors=[volume]", "train.epochs=30"],
    ),
    "moduli, the same network": (
        "configs/elasticity.yaml",
        (MODULI,),
        [
            "model.depth=4",
            "model.remedy=none",
            "model.elements=[one_hot, properties]",
            "model.edge_updates=false",
            "train.learning_rate=0.002",
        ],
    ),
    "moduli, `configs/elasticity.yaml`": ("configs/elasticity.yaml", (MODULI,), []),
}
"""Model -> settings, files of labels, and what is changed of the settings."""
SCORES = {
    "formation_energy": ("mae", "formation energy, eV/atom", 4),
    "band_gap": ("mae", "band gap, eV", 3),
    "bulk_modulus": ("mae_log10", "log10 K", 4),
    "shear_modulus": ("mae_log10", "log10 G", 4),
}


def settings(file: str, data: tuple[str, ...], seed: int, changes: list[str]) -> Config:
    """Return the settings of a model on some files."""
    paths = ", ".join(os.path.relpath(DATA / name) for name in data)
    common = [f"data.path=[{paths}]", f"data.split.seed={seed}", f"train.seed={seed}", "train.threads=1"]
    return load(ROOT / file, [*common, "train.device=cpu", *changes])


def parts(seed: int) -> dict[str, list[str]]:
    """Return the ids of the parts of all crystals, by part."""
    config = settings(*MODELS["all four in one model"][:2], seed, [])
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    found = split(config.data.split, dataset.summaries())
    return {part: list(getattr(found, part)) for part in ("train", "val", "test")}


def run(model: str, seed: int) -> dict[str, Any]:
    """Train a model and return its line."""
    file, data, changes = MODELS[model]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(file, data, seed, changes)
        there = set(CrystalDataset(prepare(config.data, config.graph), config.targets).ids)
        mine = {part: [name for name in ids if name in there] for part, ids in parts(seed).items()}
        write_json(Path(folder) / "parts.json", mine)
        method = ["data.split.method=file", f"data.split.file={folder}/parts.json"]
        result = train(settings(file, data, seed, [*changes, *method]), Path(folder) / "run")
    found = {target.name: result.metrics["test"][target.name] for target in config.targets}
    line: dict[str, Any] = {"model": model, "seed": seed, "trained": len(mine["train"])}
    line |= {name: round(scores[SCORES[name][0]], 5) for name, scores in found.items()}
    line |= {f"n_{name}": scores["n"] for name, scores in found.items()}
    return line | {"minutes": round((time.perf_counter() - started) / 60, 1)}


def table(lines: list[dict[str, Any]]) -> str:
    """Return the study as a Markdown table."""
    head = ["model", *(title for _, title, _ in SCORES.values()), "seeds", "minutes"]
    rows = [head]
    for model in MODELS:
        mine = [line for line in lines if line["model"] == model]
        if mine:
            cells = [mean_and_spread([line[name] for line in mine if name in line], SCORES[name][2]) for name in SCORES]
            rows.append([model, *cells, str(len(mine)), f"{np.mean([line['minutes'] for line in mine]):.0f}"])
    return markdown(rows)


def main() -> None:
    """Run the study or write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="models side by side, one thread each")
    parser.add_argument("--table", action="store_true", help="write the table instead")
    asked = parser.parse_args()
    path = STUDIES / f"{NAME}.jsonl"
    if asked.table:
        between_markers(DOCUMENT, NAME, table(finished(path)))
        return
    there = {(line["model"], line["seed"]) for line in finished(path)}
    jobs = [(model, seed) for seed in asked.seeds for model in asked.models if (model, seed) not in there]
    record(path, run, jobs, asked.workers)


if __name__ == "__main__":
    main()
