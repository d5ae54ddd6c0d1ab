"""Positives and unlabelled crystals without a network: bags of trees, nearest compositions, a constant.

python benchmarks/tabular_pu.py -o data.path=FILE                          # all rows, 12 bags: lines of pu.jsonl
python benchmarks/tabular_pu.py -o data.path=FILE --only 5000 --bags 3     # a trial; nothing is recorded
python benchmarks/tabular_pu.py -o data.path=FILE --run NAME=FOLDER --run OTHER=FOLDER   # also those of cgnn pu fit
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
from study import ROOT, STUDIES, between_markers, finished, markdown
from tabular import crystal_features

from cgnn.config import Config, load
from cgnn.data.dataset import CrystalDataset
from cgnn.data.summary import CrystalSummary
from cgnn.errors import DataError
from cgnn.files import write_text
from cgnn.model.descriptors import ElementStatistics, Volume
from cgnn.train.pu.evaluation import MEANINGS, agreement, evaluate, known_truth, later
from cgnn.train.pu.labels import Opening, later_ids
from cgnn.train.pu.nearest import nearest_compositions
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
        summaries: Id -> what is known of the crystal.
        plan: Held-out positives and draws.
    """

    place: dict[str, int]
    features: NDArray[np.float32]
    summaries: dict[str, CrystalSummary]
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
        np.savez(path, ids=np.array(ids), features=_computed(dataset, indices))
    kept = np.load(path)
    if kept["ids"].tolist() != ids:
        raise SystemExit(f"{path}: features of other crystals; remove it")
    crystals = dataset.summaries()
    summaries = {ids[row]: crystals[index] for row, index in enumerate(indices.tolist())}
    label = dataset.label(dataset.targets[0], indices)
    positives = [name for name, value in zip(ids, label, strict=True) if value == 1]
    place = {name: row for row, name in enumerate(ids)}
    since = [name for name in later_ids(dataset.store, config.pu, dataset.targets[0]) if name in place]
    plan = Plan.make(config.pu, [*summaries.values()], positives, since)
    return Crystals(place, kept["features"], summaries, plan)


def _computed(dataset: CrystalDataset, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    features = crystal_features(dataset, indices).astype(np.float32)
    features[~np.isfinite(features)] = np.nan  # an atom without neighbours; trees know what to do with a gap
    return features


def classifier(seed: int, trees: int) -> Any:
    """Return gradient-boosted trees that tell two classes."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        learning_rate=0.08,
        max_iter=trees,
        max_leaf_nodes=48,
        min_samples_leaf=10,
        l2_regularization=1.0,
        max_features=0.3,
        early_stopping=False,
        random_state=seed,
    )


def bagged(
    features: NDArray[np.float32], crystals: Crystals, bags: int, seed: int = 0, trees: int = 400
) -> NDArray[np.float32]:
    """Return the votes of trees (bags, n): each bag's probabilities for what it has not seen, else ``nan``."""
    votes = np.full((bags, len(features)), np.nan, dtype=np.float32)
    labels = np.zeros(len(features))
    labels[crystals.rows(crystals.plan.positives)] = 1
    for bag in range(bags):
        draw = crystals.plan.draw(bag)
        seen, outside = crystals.rows([*draw.train, *draw.val]), crystals.rows(crystals.plan.outside(draw))
        model = classifier(seed + bag, trees).fit(features[seen], labels[seen])
        votes[bag, outside] = model.predict_proba(features[outside])[:, 1]
    return votes


def nearest(crystals: Crystals) -> NDArray[np.float32]:
    """Return one vote (1, n): the share of training positives among the nearest compositions."""
    plan = crystals.plan
    votes = np.full((1, len(crystals.place)), np.nan, dtype=np.float32)
    for names, found in zip((plan.heldout, plan.scored), nearest_compositions(plan, crystals.summaries), strict=True):
        votes[0, crystals.rows(names)] = found
    return votes


ROWS: dict[str, Callable[[Crystals, int, int], NDArray[np.float32]]] = {
    "trees": lambda crystals, bags, seed: bagged(crystals.features, crystals, bags, seed),
    "trees, 1600 a bag": lambda crystals, bags, seed: bagged(crystals.features, crystals, bags, seed, 1600),
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
    tables: dict[str, Tables] = {}

    def done(row: str, found: Tables, seconds: float = 0.0) -> None:
        tables[row] = found
        line = described(row, found, config, crystals.plan, asked.truth, asked.published)
        record(asked, line, found, seconds)

    for row in asked.rows:
        started = time.perf_counter()
        votes = ROWS[row](crystals, asked.bags, config.pu.seed)
        found = tuple(scores(votes, crystals, ids) for ids in (crystals.plan.heldout, crystals.plan.scored))
        done(row, found, time.perf_counter() - started)
    fitted = {name: beside(Path(folder), crystals.plan) for name, folder in asked.run}
    for name, found in fitted.items():
        done(name, found)
    if len(fitted) > 1:
        means = [np.mean([side.clscore for side in sides], axis=0) for sides in zip(*fitted.values(), strict=True)]
        first = next(iter(fitted.values()))
        together = tuple(side.assign(clscore=mean) for side, mean in zip(first, means, strict=True))
        done(" and ".join(fitted), together)
    if asked.picture:
        from cgnn import plots
        from cgnn.plots.pu import recall_against_share

        curves = {row: tuple(side.clscore.to_numpy() for side in sides) for row, sides in tables.items()}
        curves.pop("a constant", None)
        plots.save(recall_against_share(curves, marks={"Jang et al. 2020": (0.208, 0.874)}), asked.picture)


def described(
    row: str, tables: Tables, config: Config, plan: Plan, truth: str | None = None, published: Path | None = None
) -> dict[str, Any]:
    """Return a row's line: what it is, its figures, and what the truth, time and published scores say of it.

    Args:
        row: Its name.
        tables: Scores of held-out positives and of unlabelled crystals.
        config: As for ``cgnn pu fit``.
        plan: Who became known later.
        truth: Column of the data (Parquet) with the hidden truth.
        published: CSV with ``material_id`` and ``clscore``.
    """
    heldout, unlabelled = tables
    line: dict[str, Any] = {"row": row, "data": Path(str(config.data.path)).stem, "bags": int(heldout.votes.max())}
    line |= {"seed": config.pu.seed, **figures(heldout, unlabelled, config.pu.ratio)}
    found: dict[str, float] = {}
    if truth:
        column = pd.read_parquet(config.data.path, columns=["immutable_id", truth]).set_index("immutable_id")[truth]
        scored = known_truth(unlabelled.clscore, column.loc[unlabelled.material_id].to_numpy())
        found |= {f"truth_{name}": value for name, value in scored.items()}
    if published and unlabelled.clscore.nunique() > 1:
        theirs = pd.read_csv(published, dtype={"material_id": str}).set_index("material_id").clscore
        scored = agreement(unlabelled.set_index("material_id").clscore.to_dict(), theirs.to_dict())
        found |= {f"published_{name}": value for name, value in scored.items()}
    if plan.later:
        for figure in later(unlabelled.clscore, unlabelled.material_id.isin(plan.later)):
            found |= {f"enrichment_{figure['k']}": figure["enrichment"]}
    return line | {name: round(float(value), 5) for name, value in found.items()}


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


CELLS: dict[str, Callable[[dict[str, Any]], str]] = {
    "row": lambda line: line["row"],
    "bags": lambda line: str(line["bags"]),
    "recall where 20.8 % are flagged": lambda line: f"{line['recall_at_share']:.1%} ± {line['recall_at_share_se']:.1%}",
    "recall at 0.5 / flagged": lambda line: f"{line['recall']:.1%} / {line['flagged']:.1%}",
    "Lee-Liu": lambda line: f"{line['lee_liu']:.2f}",
    "ROC AUC": lambda line: f"{line['roc_auc_unlabelled']:.3f}",
    "alpha (best bin / Elkan-Noto)": lambda line: f"{line['alpha_best_bin']:.2f} / {line['alpha_elkan_noto']:.2f}",
    "truth: AUC / AP": lambda line: f"{line['truth_roc_auc']:.3f} / {line['truth_average_precision']:.3f}",
    "enrichment of later ones, best 1,000": lambda line: f"{line['enrichment_1000']:.2f}",
    "rank correlation, published": lambda line: f"{line['published_spearman']:.3f}",
    "minutes": lambda line: f"{line['seconds'] / 60:.1f}" if line["seconds"] else "",
}
"""Title of a column -> its cell; one that needs what a line lacks stays empty, and where no line has it, away."""


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the latest line of each row and data set as Markdown, a table for each data set."""
    latest = {(line["data"], line["row"]): line for line in lines}
    parts = []
    for data in sorted({name for name, _ in latest}):
        mine = [line for (name, _), line in latest.items() if name == data]
        columns = {title: [_cell(title, line) for line in mine] for title in CELLS}
        shown = {title: cells for title, cells in columns.items() if any(cells)}
        text = markdown([list(shown), *zip(*shown.values(), strict=True)])
        sizes = f"{mine[0]['heldout']:,.0f} held-out positives, {mine[0]['unlabelled']:,.0f} unlabelled crystals"
        commands = "\n".join(f"    {command}" for command in dict.fromkeys(line["command"] for line in mine))
        parts.append(f"**{data}** ({sizes})\n\n{text}\n\nby\n\n{commands}")
    meanings = "\n".join(f"- `{name}`: {text}." for name, text in MEANINGS.items())
    return "\n\n".join([*parts, meanings])


def _cell(title: str, line: dict[str, Any]) -> str:
    try:
        return CELLS[title](line)
    except KeyError:
        return ""


def _named(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FOLDER")
    return name, folder


def main() -> None:
    """Run the rows or write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "synthesizability.yaml")
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="as for cgnn pu fit: key=value")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--bags", type=int, default=12)
    parser.add_argument("--only", type=int, help="a trial with so many crystals")
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        type=_named,
        help="also what cgnn pu fit left with the same data and settings of pu; with several also their mean",
    )
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
