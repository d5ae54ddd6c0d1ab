"""What the measures of depth cost: epochs of a training with and without them, in turn, by processor time.

    python benchmarks/depth_cost.py --data ../shared/data/elasticity.json.gz [--depths 4 16] [--epochs 3]

The settings are those of configs/depth.yaml, one thread. An epoch is its steps and the validation, without writing the
state. Off, nothing is there to cost anything: the hooks are hung by what stands around the training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from cgnn import config as configs
from cgnn.train.depth.study import planned
from cgnn.train.depth.watch import measurable, watching
from cgnn.train.engine import Stop, reproducible
from cgnn.train.loop import _Session
from cgnn.train.method import Method
from cgnn.train.run import Divided, begin

SETTINGS = Path(__file__).parents[1] / "configs" / "depth.yaml"


def epoch(session: _Session) -> float:
    """Run one epoch and return its processor seconds."""
    started = time.process_time()
    session._epoch()
    session._validate()
    session.progress.epoch, session.progress.step = session.progress.epoch + 1, 0
    return time.process_time() - started


def cost(config: configs.Config, crystals: Divided, epochs: int) -> tuple[float, float]:
    """Return the best seconds of an epoch without the measures and with them."""
    study = config.depth or configs.DepthConfig()
    (fit,) = planned(config)
    measured = measurable(crystals.dataset, crystals.parts["test"], study.crystals)
    with tempfile.TemporaryDirectory() as folder, reproducible(fit.config.train):
        around = watching(crystals.dataset, measured, Path(folder))
        sessions = [
            _Session(fit.config, crystals.dataset, crystals.parts, Path(folder), Stop(), method)
            for method in (Method(), around(Method()))
        ]
        times = [[epoch(session) for session in sessions] for _ in range(epochs)]
    plain, watched = zip(*times, strict=True)
    return min(plain), min(watched)


def main() -> None:
    """Print a line per depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    print("| layers | epoch (s) | with measures (s) | more |\n| --- | --- | --- | --- |")
    for depth in options.depths:
        changes = [f"data.path={options.data}", f"depth.depths=[{depth}]", "depth.remedies=[residual]"]
        config = configs.load(SETTINGS, [*changes, "depth.seeds=[0]"])
        with tempfile.TemporaryDirectory() as folder:
            plain, watched = cost(config, begin(config, Path(folder), False), options.epochs)
        print(f"| {depth} | {plain:.2f} | {watched:.2f} | {watched / plain - 1:.1%} |", flush=True)


if __name__ == "__main__":
    main()
