"""Which distance in a network's features tells crystals of an unseen chemistry from other unseen crystals?

python benchmarks/novelty.py                 # halides, then oxides, kept from training on moduli; seconds

For each, a small network is trained on 1,500 crystals without these elements; 600 crystals like them and up to 600 with
the elements are then judged. Printed: area under the ROC curve, shares of both that lie beyond 99 % of the training
crystals, and Spearman's correlation of distance and error of log10 K over all.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from cgnn.config import Config, build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.train import fit
from cgnn.train.trust.assess import combined_part, features_part
from cgnn.train.trust.novelty import Novelty

DATA = Path(os.environ.get("CGNN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
KEPT = {"halides": ("F", "Cl", "Br", "I"), "oxides": ("O",)}


def settings() -> Config:
    """Return a small recipe for moduli."""
    targets = [
        {"name": n, "column": f"{n}_modulus.vrh", "unit": "GPa", "transform": "log10"} for n in ("bulk", "shear")
    ]
    return build(
        {
            "targets": targets,
            "data": {"path": str(DATA / "elasticity.json.gz")},
            "model": {"width": 48, "depth": 2},
            "train": {"epochs": 12, "threads": 1, "device": "cpu"},
        }
    )


def judged(parts: list[Any], error: Any) -> dict[str, tuple[float, ...]]:
    """Return the scores of each distance, of features of training, like and unlike crystals."""
    train, like, unlike = parts
    covariance = LedoitWolf().fit(train)
    novelty = Novelty.fit(train)
    means = KMeans(500, n_init=1, max_iter=20, random_state=0)
    centers = means.fit((train - novelty.mean) @ novelty.whitening).cluster_centers_
    ways = {
        "Mahalanobis, shrunk covariance": lambda x: np.sqrt(covariance.mahalanobis(x)),
        "nearest of 500 centres": lambda x: cdist((x - novelty.mean) @ novelty.whitening, centers).min(axis=1),
        "nearest of 500 drawn (Novelty)": novelty.relative,
    }
    found = {}
    for name, way in ways.items():
        near, far = way(like), way(unlike)
        limit = 1.0 if way == novelty.relative else np.quantile(way(train), 0.99)
        truth = np.repeat([0, 1], [len(near), len(far)])
        distance = np.concatenate([near, far])
        area, rank = roc_auc_score(truth, distance), spearmanr(distance, error, nan_policy="omit").statistic
        found[name] = (area, np.mean(near > limit), np.mean(far > limit), rank)
    return found


def main() -> None:
    """Print a table for each chemistry."""
    config = settings()
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    for name, symbols in KEPT.items():
        numbers = {Element(symbol).Z for symbol in symbols}
        is_kept = np.array([bool(numbers & dataset.elements(np.array([i]))) for i in range(len(dataset))])
        rng = np.random.default_rng(0)
        rest, kept = (rng.permutation(np.flatnonzero(mask)) for mask in (~is_kept, is_kept))
        train, like, unlike = rest[:1500], rest[1500:2100], kept[:600]
        with tempfile.TemporaryDirectory() as folder:
            model = fit(config, dataset, {"train": train, "val": like[:100]}, folder).model
        both = np.concatenate([like, unlike])
        value = combined_part([model], dataset, both).learned["bulk"].value.numpy()
        error = np.abs(np.log10(dataset.label(config.targets[0], both)) - value)
        print(f"{name}\n  {'distance':34} ROC   like  unlike  rank of error")
        for way, scores in judged(
            [features_part(model, dataset, part) for part in (train, like, unlike)], error
        ).items():
            print(f"  {way:34} {'  '.join(f'{score:.3f}' for score in scores)}")


if __name__ == "__main__":
    main()
