"""The demonstration: train on the embedded crystals, score, predict, and draw pictures.

    make demo            # or: python examples/demo.py --output runs/demo

The labels are of an approximate potential (data/README.md): this shows how things work, not how well real
materials are predicted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Structure

from cgnn import Predictor, config, plots
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.train import Run, learning_curve, train
from cgnn.train.metrics import learned_unit, to_text

ROOT = Path(__file__).parents[1]


def main(words: Sequence[str] | None = None) -> None:
    """Run all steps one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--epochs", type=int, help="fewer or more than configs/demo.yaml says")
    arguments = parser.parse_args(words)
    folder = arguments.output
    overrides = [f"data.path={ROOT / 'data' / 'elasticity-emt.json.gz'}"]
    overrides += [f"train.epochs={arguments.epochs}"] if arguments.epochs else []
    settings = config.load(ROOT / "configs" / "demo.yaml", overrides)

    print(f"1. Training: {settings.train.epochs} epochs")
    run = train(settings, folder, report=_every(20))
    print("\n2. Held-out crystals, beside predicting the mean of the training crystals\n")
    print(to_text(run.metrics["test"], settings.targets))
    print("\n3. Predicting a new crystal\n")
    _predict_copper_gold(folder)
    print("\n4. Learning curve: the same test crystals, fewer training crystals\n")
    _learning_curve(run)
    _pictures(run)
    print(f"\nPictures: {', '.join(str(path) for path in sorted(folder.glob('*.png')))}")


def _every(epochs: int) -> Callable[[dict[str, float]], None]:
    def report(row: dict[str, float]) -> None:
        if row["epoch"] % epochs == 0:
            print(f"   epoch {row['epoch']:4.0f}   train {row['train_loss']:.3f}   val {row['val_score']:.3f}")

    return report


def _predict_copper_gold(folder: Path) -> None:
    crystal = Structure(
        Lattice.cubic(3.75), ["Au", "Cu", "Cu", "Cu"], [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    )
    result = Predictor.load(folder).predict([crystal], ids=["Cu3Au"])
    print(result.to_frame().to_string(index=False))
    print("units:", result.units)


def _learning_curve(run: Run) -> None:
    dataset = CrystalDataset(prepare(run.config.data, run.config.graph), run.config.targets)
    parts = {name: dataset.indices(getattr(run.split, name)) for name in ("train", "val", "test")}
    sizes = [len(parts["train"]) // share for share in (8, 4, 2, 1)]
    rows = learning_curve(run.config, dataset, parts, sizes, run.folder / "learning-curve")
    errors, baselines = {}, {}
    for target in run.config.targets:
        mine = [row for row in rows if row["target"] == target.name and row["score"] == "mae_log10"]
        errors[target.name] = [float(row["value"]) for row in mine]
        baselines[target.name] = float(np.mean([float(row["baseline"]) for row in mine]))
        for row in mine:
            print(f"   {target.name:<14} {row['size']:4d} crystals   MAE {row['value']:.4f} {learned_unit(target)}")
    figure = plots.learning_curve(sizes, errors, baselines=baselines, unit=learned_unit(run.config.targets[0]))
    plots.save(figure, run.folder / "learning_curve.png")


def _pictures(run: Run) -> None:
    import pandas as pd

    table = pd.read_csv(run.folder / "predictions.csv")
    table = table[table["part"] == "test"]
    for target in run.config.targets:
        figure = plots.parity(table[f"{target.name}_true"], table[target.name], target)
        plots.save(figure, run.folder / f"parity_{target.name}.png")
    plots.save(plots.history(run.history, run.config.targets), run.folder / "history.png")


if __name__ == "__main__":
    main()
