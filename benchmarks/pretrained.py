"""Trains a model that comes with the package, and puts it there with its card.

python benchmarks/pretrained.py elasticity              # 20 minutes on two cores
python benchmarks/pretrained.py formation_energy        # six hours, fewer where nothing else runs
python benchmarks/pretrained.py elasticity --run RUN    # only stores a finished run

An interrupted training goes on where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from study import DATA, ROOT

from cgnn.cli.card import read_scores, write_card
from cgnn.config import Config, TransferConfig, load
from cgnn.predict import Predictor
from cgnn.train import train, train_ensemble
from cgnn.train.checkpoint import load_model, save_model
from cgnn.train.ensembles.combine import combine
from cgnn.train.ensembles.ensemble import Ensemble
from cgnn.train.pretrained import model_file

MODELS = {"elasticity": ("elasticity.json.gz", 5), "formation_energy": ("formation_energy.parquet", 2)}
"""Name, also of its settings -> the data, and the number of members."""
CYCLES = {"formation_energy": (2, 1)}
"""Name -> for each member the number of further cycles of the learning rate, from where the one before ended."""
CYCLE = {"epochs": 20, "learning_rate": 0.001}
LICENCE = "CC BY 4.0 (Materials Project)"
FOLDER = ROOT / "cgnn" / "pretrained"
RUNS = ROOT / "runs"


def trained(name: str) -> Path:
    """Return the folder of a finished run."""
    file, members = MODELS[name]
    folder = RUNS / f"pretrained-{name}"
    config = load(ROOT / "configs" / f"{name}.yaml", [f"data.path={DATA / file}"])
    train_ensemble(config, folder, Ensemble(members), resume=folder.exists())
    if name not in CYCLES:
        return folder
    runs = [gone_on(config.of_member(m), folder / "members" / str(m), CYCLES[name][m]) for m in range(members)]
    return together(runs, folder / "combined")


def gone_on(config: Config, run: Path, cycles: int) -> Path:
    """Train on from the weights that a run ended with, some cycles, and return the folder of the last."""
    for seed in range(1, cycles + 1):
        transfer = TransferConfig(init_from=str(run))
        run = run.with_name(f"{run.name}-again")
        training = config.train.model_copy(update={**CYCLE, "seed": seed})
        train(config.model_copy(update={"train": training, "transfer": transfer}), run, resume=run.exists())
    return run


def together(runs: list[Path], folder: Path) -> Path:
    """Put runs into one model, unless that was done."""
    if not (folder / "metrics.json").exists():
        combine(runs, folder)
    return folder


def store(name: str, run: Path) -> None:
    """Put the model of a run into the package; where the data lay on this machine stays here."""
    members, info = load_model(model_file(run))
    file, _ = MODELS[name]
    data = info.config.data.model_copy(update={"path": file, "cache": None})
    source = {**info.source, "file": file, "licence": LICENCE}
    if "init_from" in source:
        source["init_from"] = "the same networks, with which longer cycles of the learning rate had ended"
    info = replace(info, config=info.config.model_copy(update={"data": data, "transfer": None}), source=source)
    place = FOLDER / f"{name}.safetensors"
    save_model(place, members, info)
    write_card(place.with_suffix(".md"), Predictor.load(place, "cpu"), read_scores(run))


def main() -> None:
    """Train and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--run", type=Path, help="a finished run to store")
    arguments = parser.parse_args()
    store(arguments.name, arguments.run or trained(arguments.name))


if __name__ == "__main__":
    main()
