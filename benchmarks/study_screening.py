"""Which ranking finds the hardest crystals: a back-test on known moduli that the model has not seen.

python benchmarks/study_screening.py --run elasticity                     # the package's model, its validation part
python benchmarks/study_screening.py --run runs/ensemble                  # of a run's validation and test part
python benchmarks/study_screening.py --run runs/cv/fold-0 --run runs/cv/fold-1 ...    # the test parts of folds together
python benchmarks/study_screening.py --table                              # writes the table into docs/screening.md

The crystals of the parts are ranked by predicted hardness (Mazhnik and Oganov), metals left out, as `cgnn screen` does.
Hits are those that are truly among the hardest; precision is the share of hits among the first ``--top``, enrichment
how many times that is the share of hits among all. The errors are standard deviations over 500 draws of the crystals
with replacement, the same draws for all rankings. The last result is ``benchmarks/studies/screening.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import DATA, STUDIES, between_markers, markdown

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.data.split import split
from cgnn.physics import derive, is_metal, lognormal_samples
from cgnn.predict import Predictor
from cgnn.screen.ranking import RANKINGS, Aim
from cgnn.train import Run
from cgnn.train.trust.assess import combined_part

RESULT = STUDIES / "screening.json"
DOCUMENT, NAME = "docs/screening.md", "screening"
MODULI = ("bulk_modulus", "shear_modulus")
DRAWS, RESAMPLES = 500, 500

Pool = dict[str, np.ndarray]
WAYS: dict[str, Callable[[Pool], np.ndarray]] = {
    "shear modulus alone": lambda pool: pool["shear"],
    "hardness of predicted moduli": lambda pool: pool["plain"],
    "median": lambda pool: RANKINGS["value"].score(pool["draws"], Aim()),
    "mean": lambda pool: RANKINGS["mean"].score(pool["draws"], Aim()),
    "lower bound, 16 %": lambda pool: RANKINGS["lower_bound"].score(pool["draws"], Aim(quantile=0.16)),
    "lower bound, 5 %": lambda pool: RANKINGS["lower_bound"].score(pool["draws"], Aim(quantile=0.05)),
    **{
        f"probability of {threshold} GPa": lambda pool, t=float(threshold): RANKINGS["probability"].score(
            pool["draws"], Aim(threshold=t)
        )
        for threshold in (15, 20, 30, 40)
    },
    "expected improvement on 20 GPa": lambda pool: RANKINGS["expected_improvement"].score(
        pool["draws"], Aim(threshold=20.0)
    ),
}
"""Ranking -> its scores."""


def pool_of(model: str, parts: Sequence[str], data: Path = DATA / "elasticity.json.gz") -> Pool:
    """Return what is known and predicted of the crystals of some parts of a run, metals left out.

    A model without its run, such as one of the package's own, is divided from its data as its settings say.
    """
    predictor = Predictor.load(model, "cpu")
    is_run = (Path(model) / "config.yaml").is_file()
    config = Run.load(model).config if is_run else load_settings(predictor, data)
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    divided = Run.load(model).split if is_run else split(config.data.split, dataset.summaries(config.data.split))
    ids = [name for part in parts for name in getattr(divided, part)]
    indices = dataset.indices(ids)
    summaries = dataset.summaries()
    by_name = {target.name: target for target in config.targets}
    truth = {name: dataset.label(by_name[name], indices) for name in MODULI}
    bound = np.array([not is_metal(summaries[index].composition) for index in indices])
    usable = bound & np.all([np.isfinite(values) & (values > 0) for values in truth.values()], axis=0)
    found = combined_part(predictor.members, dataset, indices[usable])
    bulk, shear = (found.decoded[name].double().numpy() for name in MODULI)
    spreads = [
        predictor.confidence.columns(by_name[name], found.learned[name].arrays())[f"{name}_std"] for name in MODULI
    ]
    names = predictor.confidence.correlation.names
    together = predictor.confidence.correlation.matrix[names.index(MODULI[0]), names.index(MODULI[1])]
    samples = lognormal_samples(bulk, shear, *spreads, together, DRAWS)
    return {
        "id": np.array(ids)[usable],
        "truth": _hardness(truth[MODULI[0]][usable], truth[MODULI[1]][usable]),
        "plain": _hardness(bulk, shear),
        "bulk": bulk,
        "shear": shear,
        **{f"true_{name}": values[usable] for name, values in zip(("bulk", "shear"), truth.values(), strict=True)},
        "draws": _hardness(*samples),
    }


def load_settings(predictor: Predictor, data: Path) -> Config:
    """Return a model's settings with data that are here."""
    settings = predictor.info.config
    return settings.model_copy(update={"data": settings.data.model_copy(update={"path": str(data), "cache": None})})


def _hardness(bulk: np.ndarray, shear: np.ndarray) -> np.ndarray:
    flat = derive(bulk.ravel(), shear.ravel(), names=["hardness_mo"])["hardness_mo"]
    return flat.reshape(bulk.shape)


def joined(pools: Sequence[Pool]) -> Pool:
    """Return several pools as one; a crystal that is in two counts once."""
    whole = {name: np.concatenate([pool[name] for pool in pools]) for name in pools[0]}
    first = np.sort(np.unique(whole["id"], return_index=True)[1])
    return {name: values[first] for name, values in whole.items()}


def precision(scores: np.ndarray, truth: np.ndarray, hits: int, top: int) -> float:
    """Return the share of the truly hardest among the first of a ranking."""
    best = set(np.argsort(-truth, kind="stable")[:hits].tolist())
    first = np.argsort(-scores, kind="stable")[:top].tolist()
    return len(best.intersection(first)) / len(first)


def back_test(pool: Pool, share: float, top: int, seed: int = 0) -> dict[str, Any]:
    """Return precision and enrichment of each ranking."""
    truth = pool["truth"]
    size, hits = len(truth), math.ceil(share * len(truth))
    scores = {name: way(pool) for name, way in WAYS.items()}
    rng = np.random.default_rng(seed)
    resampled: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(RESAMPLES):
        rows = rng.integers(size, size=size)
        for name, values in scores.items():
            resampled[name].append(precision(values[rows], truth[rows], hits, top))
    ways = {}
    for name, values in scores.items():
        found = precision(values, truth, hits, top)
        gained = np.array(resampled[name]) - np.array(resampled["hardness of predicted moduli"])
        ways[name] = {
            "precision": found,
            "spread": float(np.std(resampled[name], ddof=1)),
            "enrichment": found * size / hits,
            "over_plain": float(np.mean(gained)),
            "over_plain_spread": float(np.std(gained, ddof=1)),
            "mean_truth": float(truth[np.argsort(-values, kind="stable")[:top]].mean()),
        }
    return {"share": share, "hits": hits, "limit": float(np.sort(truth)[-hits]), "top": top, "ways": ways}


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    head = (
        f"{result['crystals']:,} crystals that the model has not learned from ({result['source']}), no metals. Mean "
        f"absolute error of the hardness of predicted moduli: {result['error']:.2f} GPa."
    )
    return "\n\n".join([head, *map(_test_table, result["tests"])])


def _test_table(test: dict[str, Any]) -> str:
    ways = test["ways"]
    best = max(way["precision"] for way in ways.values())
    out = [["ranking", f"precision at {test['top']}", "enrichment", "gain over the plain value", "mean hardness (GPa)"]]
    for name, way in ways.items():
        text = f"{way['precision']:.2f} ± {way['spread']:.2f}"
        out.append(
            [
                name,
                f"**{text}**" if way["precision"] == best else text,
                f"{way['enrichment']:.1f}",
                f"{way['over_plain']:+.3f} ± {way['over_plain_spread']:.3f}",
                f"{way['mean_truth']:.1f}",
            ]
        )
    title = (
        f"Hits: the hardest {test['share']:.0%}, {test['hits']} crystals with {test['limit']:.1f} GPa and more; the "
        f"first {test['top']} can hold at most {min(1.0, test['hits'] / test['top']):.2f} of hits."
    )
    return f"{title}\n\n{markdown(out)}"


def main() -> None:
    """Do the back-test or write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", default=[], help="run folder or model; repeat for folds")
    parser.add_argument("--parts", nargs="+", default=["val", "test"], choices=["val", "test"])
    parser.add_argument(
        "--share", type=float, nargs="+", default=[0.05, 0.02, 0.01], help="share of the crystals that are hits"
    )
    parser.add_argument("--top", type=int, default=50)
    parser.add_argument("--table", action="store_true", help="write the table instead")
    arguments = parser.parse_args()
    if arguments.table:
        between_markers(DOCUMENT, NAME, table(json.loads(RESULT.read_text())))
        return
    if not arguments.run:
        parser.error("--run: give a run folder, or several")
    runs = arguments.run
    pool = joined([pool_of(run, arguments.parts) for run in runs])
    error = float(np.abs(pool["plain"] - pool["truth"]).mean())
    source = f"{' and '.join(arguments.parts)} part of {len(runs)} run{'s' if len(runs) > 1 else ''}"
    tests = [back_test(pool, share, arguments.top) for share in arguments.share]
    result = {"crystals": len(pool["truth"]), "error": error, "source": source, "tests": tests}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
