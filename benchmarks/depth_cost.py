"""What the measures of depth cost: epochs of a training with and without them, in turn, by processor time.

    python benchmarks/depth_cost.py --data ../shared/data/elasticity.json.gz [--depths 4 16] [--epochs 4] [--rounds 2]

The settings are those of configs/depth.yaml, one thread. An epoch is its steps, the validation and writing the state.
Off, nothing is there to cost anything: the hooks are hung by what stands around the training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from cgnn import config as configs
from cgnn.train.depth.study import planned
from cgnn.train.depth.watch import measurable, watching
from cgnn.train.loop import fit
from cgnn.train.method import Method
from cgnn.train.run import Divided, begin

SETTINGS = Path(__file__).parents[1] / "configs" / "depth.yaml"


def seconds(config: configs.Config, crystals: Divided, method: Method) -> float:
    """Fit a network and return the processor seconds of its quickest epoch but the first."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        fit(
            config,
            crystals.dataset,
            crystals.parts,
            folder,
            report=lambda row: ends.append(time.process_time()),
            method=method,
        )
    return float(np.diff(ends).min())


def cost(config: configs.Config, crystals: Divided, rounds: int) -> tuple[float, float]:
    """Return the best seconds of an epoch without the measures and with them."""
    study = config.depth or configs.DepthConfig()
    (planned_fit,) = planned(config)
    measured = measurable(crystals.dataset, crystals.parts["test"], study.crystals)
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            around = watching(crystals.dataset, measured, Path(folder))
            ways = (Method(), around(Method()))
            times.append([seconds(planned_fit.config, crystals, way) for way in ways])
    plain, watched = zip(*times, strict=True)
    return min(plain), min(watched)


def main() -> None:
    """Print a line per depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--epochs", type=int, default=4, help="of each fit")
    parser.add_argument("--rounds", type=int, default=2, help="fits without and with the measures, in turn")
    options = parser.parse_args()
    print("| layers | epoch (s) | with measures (s) | more |\n| --- | --- | --- | --- |")
    for depth in options.depths:
        changes = [f"data.path={options.data}", f"depth.depths=[{depth}]", "depth.remedies=[residual]"]
        config = configs.load(SETTINGS, [*changes, "depth.seeds=[0]", f"train.epochs={options.epochs}"])
        with tempfile.TemporaryDirectory() as folder:
            plain, watched = cost(config, begin(config, Path(folder), False), options.rounds)
        print(f"| {depth} | {plain:.2f} | {watched:.2f} | {watched / plain - 1:.1%} |", flush=True)


if __name__ == "__main__":
    main()
