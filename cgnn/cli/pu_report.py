"""What a person reads about scores of positive and unlabelled crystals."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cgnn.cli.voice import say
from cgnn.data.summary import CrystalSummary
from cgnn.data.tables import TableWriter
from cgnn.errors import CgnnError, DataError, MissingPackageError
from cgnn.files import write_json
from cgnn.train.pu import PURun, Scores
from cgnn.train.pu.duplicates import SAME_CRYSTAL, SAME_FORMULA
from cgnn.train.pu.evaluation import MEANINGS, agreement, by_element, evaluate, later
from cgnn.train.pu.labels import Opening
from cgnn.train.pu.nearest import nearest_compositions
from cgnn.train.pu.plan import PLAN_FILE, Plan
from cgnn.train.pu.prior import PRIORS, calibrated, prior_error, threshold_for

Found = dict[str, Any]
NEAREST = "nearest compositions"


def bag_line(row: Mapping[str, Any]) -> str:
    """Return a row of the progress for people."""
    parts = [f"{row['bags']} bags: recall {row['recall']:.3f} ± {row['recall_error']:.3f}"]
    if "flagged" in row:
        parts.append(f"{row['flagged']:.1%} of the unlabelled flagged")
    if "score_error" in row:
        parts.append(f"error of a score {row['score_error']:.4f}")
    if row["undecided"]:
        parts.append(f"{row['undecided']:,} crystals with fewer than two votes")
    return ", ".join(parts)


def duplicates_line(folder: Path) -> str:
    """Return how many unlabelled crystals are like a positive."""
    with open(folder / "duplicates.csv", encoding="utf-8", newline="") as handle:
        kinds = Counter(row["kind"] for row in csv.DictReader(handle))
    return (
        f"of the unlabelled, {kinds[SAME_CRYSTAL]:,} are the same crystal as a positive, {kinds[SAME_FORMULA]:,} more "
        f"share a positive's formula: {folder / 'duplicates.csv'}"
    )


def say_seen(model: Path, ids: Iterable[str]) -> None:
    """Warn of crystals that have the ids of such that bags were trained on: their scores are too good."""
    if not (model / PLAN_FILE).is_file():
        return
    plan = Plan.load(model)
    positives, drawn = frozenset(plan.positives), frozenset(plan.unlabelled)
    given = list(ids)
    for what, known in (("training positives", positives), ("unlabelled crystals that bags may have drawn", drawn)):
        count = sum(name in known for name in given)
        if count:
            say(
                f"warning: {count} of the candidates have ids of {what}: they are scored as if they were new; the "
                f"scores without that are in {model / 'scores.csv'}"
            )


def evaluation(
    run: PURun, threshold: float, share: float, recall: float, prior: str, published: Path | None = None
) -> Found:
    """Return all that can be said of the scores of a run.

    Args:
        run: A finished run.
        threshold: Score from which a crystal is flagged.
        share: Share of unlabelled crystals for ``recall_at_share``.
        recall: Wanted recall, for which a threshold is chosen.
        prior: Entry of `cgnn.train.pu.prior.PRIORS` that the corrected figures rest on.
        published: A table of other scores.
    """
    known, others = run.heldout.clscore, run.scores.clscore
    ratio = len(run.plan.positives) and run.plan.size / len(run.plan.positives)
    priors = {
        name: {"alpha": estimate(known, others, ratio), "error": prior_error(name, known, others, ratio)}
        for name, estimate in PRIORS.items()
    }
    if prior not in priors:
        raise DataError(f"prior {prior!r}: expected one of {', '.join(PRIORS)}")
    alpha = priors[prior]["alpha"]
    found: Found = {
        "figures": evaluate(known, others, threshold, share=share, alpha=min(alpha, 0.99)),
        "baselines": {"constant one": evaluate(np.ones(len(known)), np.ones(len(others)), threshold, share=share)},
        "priors": priors,
        "prior": prior,
        "threshold_for": {"recall": recall, "threshold": threshold_for(recall, known)},
        "bags": len(run.progress),
    }
    found["threshold_for"]["flagged"] = float(np.mean(others[~np.isnan(others)] >= found["threshold_for"]["threshold"]))
    if run.plan.later:
        is_later = np.isin(run.scores.ids, run.plan.later)
        found["later"] = later(others, is_later)
    if published is not None:
        scores = {n: s for n, s in zip(run.scores.ids, others.tolist(), strict=True) if s == s}
        found["published"] = agreement(scores, _published(published))
    if crystals := _crystals(run):
        sides = ([sorted(crystals[name].composition) for name in table.ids] for table in (run.heldout, run.scores))
        of_known, of_others = sides
        found["elements"] = by_element(of_known, known, of_others, others, threshold=threshold)
        near = nearest_compositions(run.plan, crystals)
        found["baselines"][NEAREST] = evaluate(*near, threshold, share=share)
    return found


def write_evaluation(run: PURun, found: Found, folder: Path) -> None:
    """Write ``evaluation.json``, ``probabilities.csv`` and the pictures; without matplotlib these are left out."""
    write_json(folder / "evaluation.json", found)
    known, scores = run.heldout.clscore, run.scores
    alpha = found["priors"][found["prior"]]["alpha"]
    with TableWriter(folder / "probabilities.csv", {}) as table:
        probability = calibrated(scores.clscore, alpha, known, scores.clscore)
        columns = (scores.ids, scores.clscore.tolist(), probability.tolist())
        table.add(dict(zip(("material_id", "clscore", "probability"), columns, strict=True)))
    try:
        _plot(run, found, folder)
    except MissingPackageError as error:
        warnings.warn(f"no plots: {error}", stacklevel=2)


def evaluation_text(found: Found) -> str:
    """Return the figures with what they mean."""
    figures, wanted = found["figures"], found["threshold_for"]
    beside = found["baselines"]
    titles = "  ".join(beside)
    lines = [f"{'':22}{'value':>9}  {'error':>7}  {titles}"]
    for name, meaning in MEANINGS.items():
        if name in figures:
            error = _short(figures.get(f"{name}_se"))
            bases = "  ".join(f"{_short(table.get(name)):>{len(title)}}" for title, table in beside.items())
            lines.append(f"{name:22}{figures[name]:9.4f}  {error:>7}  {bases}  {meaning}")
    for name, each in found["priors"].items():
        lines.append(
            f"{f'alpha ({name})':22}{each['alpha']:9.4f}  {each['error']:7.4f}  {'':{len(titles)}}  share of positives"
        )
    lines.append(
        f"a recall of {wanted['recall']:g} needs the threshold {wanted['threshold']:.4f}, which flags "
        f"{wanted['flagged']:.1%} of the unlabelled"
    )
    for row in found.get("later", []):
        lines.append(
            f"best {row['k']}: {row['precision']:.1%} became known later, {row['enrichment']:.1f} times a guess"
        )
    if "published" in found:
        rank = found["published"]
        lines.append(f"rank correlation with the other table: {rank['spearman']:.3f} over {rank['n']:,} crystals")
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _crystals(run: PURun) -> dict[str, CrystalSummary]:
    """Return what is known of each crystal; nothing where the data are gone."""
    try:
        crystals = Opening(run.config.pu)(run.config).summaries()  # type: ignore[arg-type]
    except CgnnError as error:
        warnings.warn(f"no recall by element and no nearest compositions: {error}", stacklevel=2)
        return {}
    return {crystal.material_id: crystal for crystal in crystals}


def _published(path: Path) -> dict[str, float]:
    """Return a table of scores by id: the columns ``material_id`` and ``clscore``, or the first and the last one."""
    if path.suffix == ".csv":
        try:
            scores = Scores.read(path)
            return dict(zip(scores.ids, scores.clscore.tolist(), strict=True))
        except DataError:
            pass  # another table than ours
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            header, *rows = csv.reader(handle)
        place = header.index("clscore") if "clscore" in header else len(header) - 1
        return {row[0]: float(row[place]) for row in rows if row[place]}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path}: no table of ids and scores that can be read: {error}") from None


def _plot(run: PURun, found: Found, folder: Path) -> None:
    from cgnn.plots import pu as pictures
    from cgnn.plots import save

    known, others, figures = run.heldout.clscore, run.scores.clscore, found["figures"]
    curves = {"bags": (known, others)}
    save(pictures.score_histogram(known, others, figures["threshold"]), folder / "scores.png")
    save(pictures.recall_against_share(curves), folder / "recall.png")
    save(pictures.roc_curve(curves, alpha=figures.get("alpha")), folder / "roc.png")
    rows = [row for row in run.progress if "recall_at_share" in row]
    if rows:
        columns = [[row[name] for row in rows] for name in ("bags", "recall_at_share", "recall_at_share_error")]
        save(pictures.progress(*columns), folder / "progress.png")
    if "later" in found:
        save(pictures.enrichment({"bags": others}, np.isin(run.scores.ids, run.plan.later)), folder / "later.png")
    if "elements" in found:
        save(pictures.element_recall(found["elements"], least=1), folder / "elements.png")
