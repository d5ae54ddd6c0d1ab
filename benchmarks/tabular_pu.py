"""Positives and unlabelled crystals without a network: bags of trees, nearest compositions, a constant.

python benchmarks/tabular_pu.py -o data.path=FILE                          # all rows, 12 bags: lines of pu.jsonl
python benchmarks/tabular_pu.py -o data.path=FILE --only 5000 --bags 3     # a trial; nothing is recorded
python benchmarks/tabular_pu.py -o data.path=FILE --model MODEL            # also a network's scores, and both together
python benchmarks/tabular_pu.py -o data.path=PROXY -o pu.column=label --truth truth       # benchmarks/proxy_pu.py
python benchmarks/tabular_pu.py --table                                    # writes docs/synthesizability-figures.md

Labels, held-out positives and draws are those of ``cgnn pu fit`` with the same settings and seed. A row's figures are
those of ``cgnn.train.pu.evaluation``: held-out positives, which no bag has seen, against unlabelled crystals scored by
the bags that have not drawn them. Features are computed once and kept in the folder ``--cache``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from study import ROOT, STUDIES, between_markers, finished
from tabular import crystal_features

from cgnn.config import Config, load
from cgnn.data.dataset import CrystalDataset, by_edges
from cgnn.errors import DataError
from cgnn.files import write_text
from cgnn.model.descriptors import ElementStatistics, Volume
from cgnn.train.pu.evaluation import MEANINGS, agreement, evaluate, known_truth
from cgnn.train.pu.labels import Opening
from cgnn.train.pu.plan import Plan
from cgnn.train.pu.prior import PRIORS

NAME = "pu"
DOCUMENT = "docs/synthesizability-figures.md"
COMPOSITION = ElementStatistics().outputs + Volume().outputs
"""First columns of the features: statistics of the elements, and volume per atom."""
FILES = ("heldout.csv", "scores.csv")
Tables = tuple[pd.DataFrame, ...]
"""Scores of held-out positives and of unlabelled crystals, as `FILES` hold them."""


@dataclass(frozen=True)
class Crystals:
    """Crystals as rows of numbers, and what each bag may see of them.

    Args:
        place: Id -> row.
        features: Of ``benchmarks/tabular.py`` (n, P).
        fractions: Share of each element (n, 118).
        plan: Held-out positives and draws.
    """

    place: dict[str, int]
    features: NDArray[np.float32]
    fractions: NDArray[np.float32]
    plan: Plan

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of ids."""
        return np.array([self.place[name] for name in ids], dtype=np.int64)


def read(config: Config, cache: Path, only: int | None = None) -> Crystals:
    """Return the crystals of a configuration; features come from the cache if they are there.

    Args:
        config: As for ``cgnn pu fit``.
        cache: Folder of features.
        only: Take so many crystals, drawn by the seed.
    """
    dataset: CrystalDataset = Opening(config.pu)(config)
    indices = np.arange(len(dataset))
    if only and only < len(dataset):
        indices = np.sort(np.random.default_rng(config.pu.seed).choice(indices, only, replace=False))
    path = cache / f"{dataset.store.key[:16]}-{len(indices)}-{config.pu.seed if only else 'all'}.npz"
    ids = [dataset.ids[index] for index in indices.tolist()]
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        features, fractions = _computed(dataset, indices)
        np.savez(path, ids=np.array(ids), features=features, fractions=fractions)
    kept = np.load(path)
    if kept["ids"].tolist() != ids:
        raise SystemExit(f"{path}: features of other crystals; remove it")
    summaries = dataset.summaries()
    label = dataset.label(dataset.targets[0], indices)
    positives = [name for name, value in zip(ids, label, strict=True) if value == 1]
    plan = Plan.make(config.pu, [summaries[index] for index in indices.tolist()], positives)
    place = {name: row for row, name in enumerate(ids)}
    return Crystals(place, kept["features"], kept["fractions"], plan)


def _computed(dataset: CrystalDataset, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    features = crystal_features(dataset, indices).astype(np.float32)
    features[~np.isfinite(features)] = np.nan  # an atom without neighbours; trees know what to do with a gap
    atoms = dataset.sizes()[0][indices]
    batches = (dataset.batch(part) for part in by_edges(dataset, indices))
    z = np.concatenate([batch.z.numpy() for batch in batches])
    counts = np.zeros((len(indices), 119), dtype=np.float32)
    np.add.at(counts, (np.repeat(np.arange(len(indices)), atoms), z), 1)
    return features, counts[:, 1:] / atoms[:, None].astype(np.float32)


def classifier(seed: int) -> Any:
    """Return gradient-boosted trees that tell two classes."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        learning_rate=0.08,
        max_iter=400,
        max_leaf_nodes=48,
        min_samples_leaf=10,
        l2_regularization=1.0,
        max_features=0.3,
        early_stopping=False,
        random_state=seed,
    )


def bagged(features: NDArray[np.float32], crystals: Crystals, bags: int, seed: int = 0) -> NDArray[np.float32]:
    """Return the votes of trees (bags, n): each bag's probabilities for what it has not seen, else ``nan``."""
    votes = np.full((bags, len(features)), np.nan, dtype=np.float32)
    labels = np.zeros(len(features))
    labels[crystals.rows(crystals.plan.positives)] = 1
    for bag in range(bags):
        draw = crystals.plan.draw(bag)
        seen, outside = crystals.rows([*draw.train, *draw.val]), crystals.rows(crystals.plan.outside(draw))
        model = classifier(seed + bag).fit(features[seen], labels[seen])
        votes[bag, outside] = model.predict_proba(features[outside])[:, 1]
    return votes


def nearest(crystals: Crystals, neighbours: int = 10) -> NDArray[np.float32]:
    """Return one vote (1, n): the share of training positives among the nearest other compositions.

    Looked at are training positives and unlabelled crystals, by the Euclidean distance of their element shares.
    """
    from sklearn.neighbors import NearestNeighbors

    plan = crystals.plan
    known, asked = crystals.rows([*plan.positives, *plan.scored]), crystals.rows([*plan.scored, *plan.heldout])
    search = NearestNeighbors(n_neighbors=min(neighbours + 1, len(known)), algorithm="brute")
    found = search.fit(crystals.fractions[known]).kneighbors(crystals.fractions[asked], return_distance=False)
    is_other = known[found] != asked[:, None]
    # where the crystal is not among its own neighbours, the farthest one is too many
    is_other[is_other.all(axis=1), -1] = False
    is_positive = np.zeros(len(crystals.place), dtype=bool)
    is_positive[crystals.rows(plan.positives)] = True
    votes = np.full((1, len(crystals.place)), np.nan, dtype=np.float32)
    votes[0, asked] = (is_positive[known[found]] & is_other).sum(axis=1) / is_other.sum(axis=1)
    return votes


ROWS: dict[str, Callable[[Crystals, int, int], NDArray[np.float32]]] = {
    "trees": lambda crystals, bags, seed: bagged(crystals.features, crystals, bags, seed),
    "trees, composition and volume": lambda crystals, bags, seed: bagged(
        crystals.features[:, :COMPOSITION], crystals, bags, seed
    ),
    "nearest compositions": lambda crystals, bags, seed: nearest(crystals),
    "a constant": lambda crystals, bags, seed: np.ones((1, len(crystals.place)), dtype=np.float32),
}
"""Name -> votes (K, n) on all crystals; arguments: crystals, bags, seed."""


def scores(votes: NDArray[np.float32], crystals: Crystals, ids: Sequence[str]) -> pd.DataFrame:
    """Return the table that ``cgnn pu fit`` leaves: mean and spread of the votes on some crystals."""
    cast = votes[:, crystals.rows(ids)].astype(np.float64)
    number = np.isfinite(cast).sum(axis=0)
    total, squares = np.nansum(cast, axis=0), np.nansum(cast**2, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / number
        spread = np.sqrt(np.maximum(squares - number * mean**2, 0) / (number - 1))
    return pd.DataFrame({"material_id": ids, "clscore": mean, "clscore_std": spread, "votes": number})


def figures(heldout: pd.DataFrame, unlabelled: pd.DataFrame, ratio: float) -> dict[str, float]:
    """Return what can be said of two tables of scores, with both priors."""
    sides = heldout.clscore.to_numpy(), unlabelled.clscore.to_numpy()
    alphas = {f"alpha_{way}": estimate(*sides, ratio) for way, estimate in PRIORS.items()}
    alpha = alphas["alpha_best_bin"]
    found = evaluate(*sides, alpha=alpha if alpha < 1 else None)
    return {name: round(float(value), 5) for name, value in (found | alphas).items()}


def beside(folder: Path, plan: Plan) -> Tables:
    """Return the scores that ``cgnn pu fit`` has left, of held-out positives and of unlabelled crystals, in order.

    Raises:
        DataError: They are of other crystals.
    """
    tables = []
    for file, ids in zip(FILES, (plan.heldout, plan.scored), strict=True):
        table = pd.read_csv(folder / file, dtype={"material_id": str}).set_index("material_id")
        if set(table.index) != set(ids):
            raise DataError(f"{folder / file}: scores of other crystals; fit with the same data and settings under pu")
        tables.append(table.loc[list(ids)].reset_index())
    return tuple(tables)


def run(asked: argparse.Namespace, config: Config) -> None:
    """Score all rows that are asked for; print each line, and record it unless it is a trial."""
    crystals = read(config, asked.cache, asked.only)
    network = beside(asked.model, crystals.plan) if asked.model else None
    tables: dict[str, Tables] = {}

    def done(row: str, found: Tables, seconds: float = 0.0) -> None:
        tables[row] = found
        record(asked, described(row, found, config, asked), found, seconds)

    for row in asked.rows:
        started = time.perf_counter()
        votes = ROWS[row](crystals, asked.bags, config.pu.seed)
        found = tuple(scores(votes, crystals, ids) for ids in (crystals.plan.heldout, crystals.plan.scored))
        done(row, found, time.perf_counter() - started)
    if network:
        done("network", network)
        for row in [name for name in asked.rows if name.startswith("trees")]:
            pairs = zip(network, tables[row], strict=True)
            mean = tuple(ours.assign(clscore=(ours.clscore + theirs.clscore) / 2) for ours, theirs in pairs)
            done(f"network and {row}", mean)
    if asked.picture:
        from cgnn import plots
        from cgnn.plots.pu import recall_against_share

        curves = {row: tuple(side.clscore.to_numpy() for side in sides) for row, sides in tables.items()}
        curves.pop("a constant", None)
        plots.save(recall_against_share(curves, marks={"Jang et al. 2020": (0.208, 0.874)}), asked.picture)


def described(row: str, tables: Tables, config: Config, asked: argparse.Namespace) -> dict[str, Any]:
    """Return a row's line: what it is, its figures, and what the truth and published scores say of it."""
    heldout, unlabelled = tables
    line: dict[str, Any] = {"row": row, "data": Path(str(config.data.path)).stem, "bags": int(heldout.votes.max())}
    line |= {"seed": config.pu.seed, **figures(heldout, unlabelled, config.pu.ratio)}
    if asked.truth:
        truth = pd.read_parquet(config.data.path, columns=["immutable_id", asked.truth]).set_index("immutable_id")
        found = known_truth(unlabelled.clscore, truth[asked.truth].loc[unlabelled.material_id].to_numpy())
        line |= {f"truth_{name}": round(float(value), 5) for name, value in found.items()}
    if asked.published and unlabelled.clscore.nunique() > 1:
        published = pd.read_csv(asked.published, dtype={"material_id": str}).set_index("material_id").clscore.to_dict()
        found = agreement(unlabelled.set_index("material_id").clscore.to_dict(), published)
        line |= {f"published_{name}": round(float(value), 5) for name, value in found.items()}
    return line


def record(asked: argparse.Namespace, line: dict[str, Any], tables: Tables, seconds: float) -> None:
    """Print a row's line; keep it, and its scores, where that is asked for."""
    line |= {"seconds": round(seconds, 1), "command": shlex.join(["python", "benchmarks/tabular_pu.py", *sys.argv[1:]])}
    print(json.dumps(line), flush=True)
    if asked.scores:
        folder = asked.scores / line["row"].replace(",", "").replace(" ", "_")
        for file, scored in zip(FILES, tables, strict=True):
            write_text(folder / file, scored.to_csv(index=False, float_format="%.6g"))
    if not asked.only:
        with asked.lines.open("a") as file:
            file.write(json.dumps(line) + "\n")


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the latest line of each row and data set as Markdown, a table for each data set."""
    latest = {(line["data"], line["row"]): line for line in lines}
    parts = []
    for data in sorted({name for name, _ in latest}):
        mine = [line for (name, _), line in latest.items() if name == data]
        has_truth = any("truth_roc_auc" in line for line in mine)
        head = ["row", "bags", "recall where 20.8 % are flagged", "recall at 0.5 / flagged", "Lee-Liu", "ROC AUC"]
        head += ["alpha (best bin / Elkan-Noto)", *(["AUC / AP, truth"] if has_truth else []), "minutes"]
        cells = [head, ["---"] * len(head), *(_cells(line, has_truth) for line in mine)]
        rows = "\n".join("| " + " | ".join(row) + " |" for row in cells)
        sizes = f"{mine[0]['heldout']:,.0f} held-out positives, {mine[0]['unlabelled']:,.0f} unlabelled crystals"
        commands = "\n".join(f"    {command}" for command in dict.fromkeys(line["command"] for line in mine))
        parts.append(f"**{data}** ({sizes})\n\n{rows}\n\nby\n\n{commands}")
    meanings = "\n".join(f"- `{name}`: {text}." for name, text in MEANINGS.items())
    return "\n\n".join([*parts, meanings])


def _cells(line: dict[str, Any], has_truth: bool) -> list[str]:
    at_share = f"{line['recall_at_share']:.1%} ± {line['recall_at_share_se']:.1%}"
    alphas = f"{line['alpha_best_bin']:.2f} / {line['alpha_elkan_noto']:.2f}"
    truth = (
        [f"{line['truth_roc_auc']:.3f} / {line['truth_average_precision']:.3f}"] if "truth_roc_auc" in line else [""]
    )
    return [
        line["row"],
        str(line["bags"]),
        at_share,
        f"{line['recall']:.1%} / {line['flagged']:.1%}",
        f"{line['lee_liu']:.2f}" if "lee_liu" in line else "",
        f"{line['roc_auc_unlabelled']:.3f}",
        alphas,
        *(truth if has_truth else []),
        f"{line['seconds'] / 60:.1f}",
    ]


def main() -> None:
    """Run the rows or write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "synthesizability.yaml")
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="as for cgnn pu fit: key=value")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--bags", type=int, default=12)
    parser.add_argument("--only", type=int, help="a trial with so many crystals")
    parser.add_argument("--model", type=Path, help="folder of cgnn pu fit with the same data and seed")
    parser.add_argument("--truth", help="column of the data (Parquet) with the hidden truth")
    parser.add_argument("--published", type=Path, help="CSV with material_id and clscore, for the rank correlation")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "pu" / "features")
    parser.add_argument("--scores", type=Path, help="folder for scores.csv and heldout.csv of each row")
    parser.add_argument("--picture", type=Path, help="draw recall against the share flagged")
    parser.add_argument("--lines", type=Path, default=STUDIES / f"{NAME}.jsonl")
    parser.add_argument("--table", action="store_true", help="write the table instead")
    asked = parser.parse_args()
    if asked.table:
        between_markers(DOCUMENT, NAME, table(finished(asked.lines)))
        return
    config = load(asked.config, asked.overrides)
    if config.pu is None:
        parser.error(f"{asked.config}: no section pu")
    run(asked, config)


if __name__ == "__main__":
    main()
