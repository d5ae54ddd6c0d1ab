"""The baseline without a network: statistics of elements and simple features of structure, trees from scikit-learn.

python benchmarks/tabular.py --data FILE                     # targets and split of configs/elasticity.yaml
python benchmarks/tabular.py --data FILE --split chemical_system --seeds 0 1 2
python benchmarks/tabular.py --data FILE --targets shear_modulus -o data.split.test=0.1 --models boosting

The scores are those of ``cgnn train`` with the same settings: the same crystals, the same parts (they follow from
``data.split``, its seed included), the same units. Scored is the test part where there is one, else the validation
part, from which the trees learn nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgnn.config import Config, load
from cgnn.data.dataset import CrystalDataset, by_edges
from cgnn.data.prepare import prepare
from cgnn.data.split import PARTS, split
from cgnn.graph.fields import distances
from cgnn.model.descriptors import ElementStatistics, Volume
from cgnn.model.embed import covalent_radii, electronegativities
from cgnn.targets import TRANSFORMS, Target
from cgnn.train.metrics import Baseline, evaluate, to_text

ROOT = Path(__file__).parents[1]
Array = NDArray[np.float64]
Indices = NDArray[np.int64]


def boosting(seed: int) -> Any:
    """Return gradient-boosted trees."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        learning_rate=0.03, max_iter=600, max_leaf_nodes=24, min_samples_leaf=8, max_features=0.3, random_state=seed
    )


def trees(seed: int) -> Any:
    """Return extremely randomised trees."""
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(100, max_features=0.5, random_state=seed, n_jobs=1)


MODELS: dict[str, Callable[[int], Any]] = {"boosting": boosting, "trees": trees}


def fit_predict(
    train_features: Array, labels: Array, features: Array, models: Sequence[str] = tuple(MODELS), seed: int = 0
) -> Array:
    """Return the mean prediction of some `MODELS` for other crystals.

    Args:
        train_features: (n, P).
        labels: On the scale on which they are learned (n,); crystals without one (``nan``) are left out.
        features: Of the crystals to predict (m, P).
        models: Entries of `MODELS`.
        seed: For the draws of the trees.

    Returns:
        (m,), on the scale of the labels.
    """
    known = np.isfinite(labels)
    fitted = [MODELS[name](seed).fit(train_features[known], labels[known]) for name in models]
    return np.mean([model.predict(features) for model in fitted], axis=0)


def predict(
    features: Array,
    dataset: CrystalDataset,
    train: Indices,
    others: Indices,
    models: Sequence[str] = tuple(MODELS),
    seed: int = 0,
) -> dict[str, Array]:
    """Return predictions of some crystals by target name, in the target's unit, learned from others.

    Args:
        features: Of all crystals of the data set (n, P), from `crystal_features`.
        dataset: The crystals with their labels.
        train: Which to learn from.
        others: Which to predict.
        models: Entries of `MODELS`.
        seed: For the draws of the trees.
    """
    found = {}
    for target in dataset.targets:
        if target.level != "crystal" or target.task != "regression":
            raise SystemExit(f"target {target.name!r}: the tabular baseline knows numbers of whole crystals only")
        learned = target.to_learned(dataset.label(target, train))
        values = fit_predict(features[train], learned, features[others], models, seed)
        found[target.name] = np.asarray(TRANSFORMS[target.transform].inverse(values))
    return found


def crystal_features(dataset: CrystalDataset, indices: Indices | None = None) -> Array:
    """Return the features of crystals of a data set (n, P), by default all; the same in every cell and orientation.

    Mean, mean absolute deviation, minimum and maximum of the element properties, volume per atom, number of elements,
    and for the distance to the nearest neighbour (in Å, and over the sum of the covalent radii), the effective
    coordination number and the difference of electronegativity to the neighbours: mean, deviation, minimum and maximum.
    """
    parts = by_edges(dataset, np.arange(len(dataset)) if indices is None else indices)
    return np.concatenate([_features(dataset.batch(part)) for part in parts])


@torch.no_grad()
def _features(batch: Any) -> Array:
    composition = [ElementStatistics()(batch).numpy(), Volume()(batch).numpy()]
    crystal = batch.batch.numpy()
    count = np.bincount(crystal, minlength=batch.num_graphs)
    volume = batch.lattice.det().abs().numpy() / count
    atoms = _atom_features(batch)
    statistics = [_statistics(values, crystal, count) for values in atoms.T]
    bonds = _mean(atoms[:, 2], crystal, count)
    spheres = _mean(atoms[:, 0] ** 3, crystal, count) * np.pi / 6
    kinds = np.array([len(np.unique(z)) for z in np.split(batch.z.numpy(), np.cumsum(count)[:-1])])
    whole = np.stack([kinds, spheres / volume, np.log10(bonds / volume)], axis=1)
    return np.hstack([*composition, *statistics, whole]).astype(np.float64)


def _atom_features(batch: Any) -> Array:
    """Return nearest distance, the same in covalent radii, coordination and polarity of atoms (N, 4)."""
    source, target = batch.edge_index.numpy()
    d, z = distances(batch).numpy(), batch.z.numpy()
    nearest = np.full(len(z), np.inf)
    np.minimum.at(nearest, target, d)
    ratio = np.full(len(z), np.inf)
    np.minimum.at(ratio, target, d / (RADII[z[source]] + RADII[z[target]]))
    # Hoppe's effective coordination: neighbours count less the farther they are beyond the nearest
    weight = np.exp(1 - (d / nearest[target]) ** 6)
    coordination = np.bincount(target, weight, minlength=len(z))
    polarity = (
        np.bincount(
            target, weight * np.abs(ELECTRONEGATIVITY[z[source]] - ELECTRONEGATIVITY[z[target]]), minlength=len(z)
        )
        / coordination
    )
    return np.stack([nearest, ratio, coordination, polarity], axis=1)


def _statistics(values: Array, crystal: Indices, count: Indices) -> Array:
    """Return mean, mean absolute deviation, minimum and maximum over the atoms of each crystal (B, 4)."""
    mean = _mean(values, crystal, count)
    low, high = np.full(len(count), np.inf), np.full(len(count), -np.inf)
    np.minimum.at(low, crystal, values)
    np.maximum.at(high, crystal, values)
    return np.stack([mean, _mean(np.abs(values - mean[crystal]), crystal, count), low, high], axis=1)


def _mean(values: Array, crystal: Indices, count: Indices) -> Array:
    return np.bincount(crystal, values, minlength=len(count)) / count


RADII, ELECTRONEGATIVITY = covalent_radii(), electronegativities()
"""By atomic number: Å, and Pauling's scale."""


def scores(config: Config, models: Sequence[str] = tuple(MODELS)) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the part that is scored and its scores by target, as ``metrics.json`` of a run has them."""
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    parts = split(config.data.split, dataset.summaries(config.data.split))
    indices = {part: dataset.indices(getattr(parts, part)) for part in PARTS}
    scored = "test" if len(indices["test"]) else "val"
    guesses = predict(crystal_features(dataset), dataset, indices["train"], indices[scored], models, config.train.seed)
    truth = {target.name: dataset.label(target, indices[scored]) for target in dataset.targets}
    baselines = {t.name: Baseline.fit(t, dataset.label(t, indices["train"])) for t in dataset.targets}
    return scored, evaluate(dataset.targets, truth, guesses, baselines)


def summary(found: Sequence[Mapping[str, Mapping[str, float]]], targets: Sequence[Target]) -> str:
    """Return mean and spread over seeds of the mean absolute error, on the scale on which it is learned."""
    lines = []
    for target in targets:
        key = "mae" if target.transform == "none" else f"mae_{target.transform}"
        values = [scores[target.name][key] for scores in found]
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        lines.append(f"{target.name}: {key} {np.mean(values):.4f} ± {spread:.4f} over {len(values)} seeds")
    return "\n".join(lines)


def main() -> None:
    """Print the scores of the baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "elasticity.yaml", help="targets and split")
    parser.add_argument("--data", required=True, help="crystals with labels")
    parser.add_argument("--targets", nargs="+", help="names of targets in the configuration; all by default")
    parser.add_argument("--split", help="method, instead of the configuration's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the split")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="their mean predicts")
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="as for cgnn train: key=value")
    asked = parser.parse_args()
    changes = [
        f"data.path={asked.data}",
        *asked.overrides,
        *([f"data.split.method={asked.split}"] if asked.split else []),
    ]
    found = []
    for seed in asked.seeds:
        config = load(asked.config, [*changes, f"data.split.seed={seed}"])
        if asked.targets:
            kept = tuple(target for target in config.targets if target.name in asked.targets)
            config = config.model_copy(update={"targets": kept})
        started = time.perf_counter()
        part, found_now = scores(config, asked.models)
        print(f"{config.data.split.method} split, seed {seed}, {part} part, {time.perf_counter() - started:.0f} s")
        print(to_text(found_now, config.targets), end="\n\n", flush=True)
        found.append(found_now)
    print(summary(found, config.targets))


if __name__ == "__main__":
    main()
