"""How good scores are where only positives are known, and where the truth is known after all.

Recall of held-out positives alone says nothing: who calls everything positive has all of it. Here it never stands
without the share of unlabelled crystals that is flagged at the same threshold. `MEANINGS` has each figure in words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.errors import DataError
from cgnn.train.pu.prior import Array, given, scores_of, share_reaching

Figures = dict[str, float | int]

SHARE = 0.208
"""Share of unlabelled crystals above 0.5 in Jang et al., J. Am. Chem. Soc. 142, 18836 (2020), at a recall of 0.874."""

MEANINGS = {
    "recall": "share of held-out positives that reach the threshold; read it together with the share flagged",
    "flagged": "share of unlabelled crystals that reach the threshold; a classifier that says yes to all has 1",
    "recall_at_share": "share of held-out positives found where the given share of unlabelled crystals is flagged",
    "threshold_at_share": "threshold that flags the given share of unlabelled crystals",
    "lee_liu": "recall squared over the share flagged: proportional to the product of precision and recall, 1 for a "
    "guess; it compares classifiers, its size has no meaning of its own",
    "roc_auc_unlabelled": "chance that a held-out positive scores above an unlabelled crystal; as some unlabelled "
    "ones are positive, a perfect classifier stays below 1 (at 1 - alpha / 2)",
    "roc_auc_corrected": "the same against negatives alone, if a share alpha of the unlabelled are positives like the "
    "held-out ones: as good as alpha is, and above 1 where alpha is too high",
    "precision_estimated": "share of true positives among the flagged unlabelled crystals, alpha * recall / flagged, "
    "if alpha is right and the held-out positives are like those among the unlabelled",
}
"""Figure of `evaluate` -> what it says, caveats included."""


def evaluate(
    heldout: ArrayLike,
    unlabelled: ArrayLike,
    threshold: float = 0.5,
    *,
    share: float = SHARE,
    alpha: float | None = None,
    repeats: int = 200,
    seed: int = 0,
) -> Figures:
    r"""Return what can be said without knowing a negative; `MEANINGS` explains it.

    With recall r, flagged share f and the area A under the curve of r against f,

    .. math:: L = \frac{r^2}{f}, \qquad A_\text{corrected} = \frac{A - \alpha / 2}{1 - \alpha}.

    Args:
        heldout: Scores of positives that no classifier has seen (P,); ``nan`` (no votes) is left out.
        unlabelled: Scores of unlabelled crystals by classifiers that have not drawn them (U,); likewise.
        threshold: From which score on a crystal is flagged.
        share: Of unlabelled crystals, for ``recall_at_share``. Equal scores are flagged in part, as if by lot.
        alpha: Share of positives among the unlabelled (`cgnn.train.pu.prior`); without it no corrected figures.
        repeats: Draws for the standard error of ``recall_at_share``.
        seed: For these.

    Returns:
        ``heldout``, ``unlabelled`` (numbers of scores), ``threshold``, ``share``, ``threshold_at_share``, the figures
        of `MEANINGS`, and for most of them a standard error, ``<figure>_se``: binomial for shares, DeLong's for areas,
        of drawing crystals anew for ``recall_at_share``; none knows the error of alpha. ``lee_liu`` is left out where
        nothing is flagged.

    Raises:
        DataError: A side without scores, scores that are no probabilities, or a share outside of (0, 1).

    Source: the Lee-Liu score: W. S. Lee and B. Liu, ICML 2003, 448. The corrected area: A. K. Menon et al., ICML 2015,
    125; S. Jain et al., AAAI 2017. Error of areas: E. R. DeLong et al., Biometrics 44, 837 (1988).
    """
    known, others = given(heldout, unlabelled)
    if not 0 < share < 1:
        raise DataError(f"share {share}: expected a number between 0 and 1, such as {SHARE}")
    recall, flagged = (float((scores >= threshold).mean()) for scores in (known, others))
    figures: Figures = {"heldout": len(known), "unlabelled": len(others), "threshold": threshold}
    figures |= {"recall": recall, "recall_se": binomial_error(recall, len(known))}
    figures |= {"flagged": flagged, "flagged_se": binomial_error(flagged, len(others))}
    figures |= {
        "share": share,
        "threshold_at_share": float(np.quantile(others, 1 - share)),
        "recall_at_share": float(recall_at(known, others, share)),
        "recall_at_share_se": _redrawn_error(known, others, share, repeats, seed),
    }
    if flagged > 0:
        figures |= _lee_liu(recall, flagged, len(known), len(others))
    area, error = roc_auc(known, others)
    figures |= {"roc_auc_unlabelled": area, "roc_auc_unlabelled_se": error}
    if alpha is not None:
        figures |= _corrected(figures, alpha)
    return figures


def recall_at(heldout: ArrayLike, unlabelled: ArrayLike, shares: ArrayLike) -> Array:
    """Return the recall of held-out positives where given shares of the unlabelled crystals are flagged.

    Linear between thresholds: of crystals with equal scores, part is flagged as if by lot, so one score for all has a
    recall equal to the share.

    Args:
        heldout: Scores (P,).
        unlabelled: Scores (U,).
        shares: Any shape, within [0, 1].
    """
    flagged, recall = roc(heldout, unlabelled)
    wanted = np.asarray(shares, dtype=np.float64)
    # the last threshold that flags no more; a step straight up at the wanted share, up to rounding, belongs to it
    here = np.searchsorted(flagged, wanted + 1e-12, side="right") - 1
    after = np.minimum(here + 1, len(flagged) - 1)
    part = (wanted - flagged[here]) / np.maximum(flagged[after] - flagged[here], np.finfo(np.float64).tiny)
    return recall[here] + np.clip(part, 0, 1) * (recall[after] - recall[here])


def roc(heldout: ArrayLike, unlabelled: ArrayLike) -> tuple[Array, Array]:
    """Return share flagged and recall at all thresholds, from none to all (K,), (K,)."""
    known, others = given(heldout, unlabelled)
    thresholds = np.unique(np.concatenate([known, others]))[::-1]
    flagged, recall = (np.append(0.0, share_reaching(scores, thresholds)) for scores in (others, known))
    return flagged, recall


def roc_auc(heldout: ArrayLike, unlabelled: ArrayLike) -> tuple[float, float]:
    r"""Return the area under the ROC curve against unlabelled crystals, and its standard error.

    With :math:`V_i` the share of unlabelled crystals that a positive beats (equal scores count half) and :math:`W_j`
    the share of positives that beat an unlabelled crystal,

    .. math:: A = \frac1P \sum_i V_i, \qquad \sigma^2 = \frac{\mathrm{var}(V)}{P} + \frac{\mathrm{var}(W)}{U}.
    """
    known, others = given(heldout, unlabelled)
    beaten, beating = _beaten(known, others), 1 - _beaten(others, known)
    variance = sum(float(np.var(v, ddof=1)) / len(v) for v in (beaten, beating) if len(v) > 1)
    return float(beaten.mean()), float(np.sqrt(variance))


def later(
    scores: ArrayLike, is_later: ArrayLike, numbers: Sequence[int] = (100, 300, 1000, 3000, 10000)
) -> list[Figures]:
    r"""Return precision and enrichment of the best-scored crystals for those found positive later.

    .. math:: \text{enrichment}(k) = \frac{\text{precision}(k)}{\text{share of later positives among all}}

    A crystal that is not found yet counts as missed, so precision is a lower bound.

    Args:
        scores: Of crystals that were unlabelled at training (n,); ``nan`` is left out.
        is_later: Whether they have become positive since (n,), true or false.
        numbers: How many of the best to look at; larger ones than there are crystals are left out.

    Returns:
        For each number ``k``, ``precision``, ``precision_se`` (binomial), ``recall``, ``enrichment``,
        ``enrichment_se``; equal scores are taken as if by lot.

    Raises:
        DataError: No crystal has a score, none has become positive, or lengths differ.
    """
    values, truth = _with_truth(scores, is_later, "crystals found positive later")
    base = float(truth.mean())
    rows: list[Figures] = []
    for k in (number for number in numbers if 0 < number <= len(values)):
        precision = hits(values, truth, k) / k
        error = binomial_error(precision, k)
        row = {"k": k, "precision": precision, "precision_se": error, "recall": precision * k / float(truth.sum())}
        rows.append(row | {"enrichment": precision / base, "enrichment_se": error / base})
    return rows


def hits(scores: Array, truth: NDArray[np.bool_], k: int) -> float:
    """Return how many true ones are among the k best-scored; those with the score of the k-th count by lot."""
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, equal = scores > last, scores == last
    return float(truth[above].sum() + (k - above.sum()) * truth[equal].mean())


def known_truth(scores: ArrayLike, truth: ArrayLike, threshold: float = 0.5) -> Figures:
    """Return the usual scores of a classifier where a hidden truth is known: the proxy.

    Args:
        scores: Of unlabelled crystals, out of bag (n,); ``nan`` is left out.
        truth: Whether they are positive (n,); not seen in training.
        threshold: From which score on a crystal is called positive.

    Returns:
        ``n``, ``positives`` (their share), ``roc_auc`` and ``roc_auc_se``, ``average_precision`` (of a guess: the share
        of positives), ``precision``, ``recall``, ``f1``, and ``f1_constant`` of who calls all positive.

    Raises:
        DataError: No scores, one class only, or lengths differ.
    """
    from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

    values, classes = _with_truth(scores, truth, "positives in the truth")
    if classes.all():
        raise DataError("truth: all crystals are positive, so there is nothing to tell apart")
    called = values >= threshold
    area, error = roc_auc(values[classes > 0], values[classes == 0])
    base = float(classes.mean())
    return {
        "n": len(values),
        "positives": base,
        "roc_auc": area,
        "roc_auc_se": error,
        "average_precision": float(average_precision_score(classes, values)),
        "precision": float(precision_score(classes, called, zero_division=0)),
        "recall": float(recall_score(classes, called)),
        "f1": float(f1_score(classes, called, zero_division=0)),
        "f1_constant": 2 * base / (1 + base),
    }


def by_element(
    elements: Sequence[Collection[str]],
    heldout: ArrayLike,
    unlabelled_elements: Sequence[Collection[str]] = (),
    unlabelled: ArrayLike = (),
    *,
    threshold: float = 0.5,
) -> dict[str, Figures]:
    """Return recall of the held-out positives that contain an element, beside the share flagged of such crystals.

    For a table of leaving out one element at a time, give it the scores of the fit that has not seen the element,
    and take the element's row.

    Args:
        elements: Of each held-out positive, its symbols (P).
        heldout: Scores (P,); ``nan`` is left out.
        unlabelled_elements: Of each unlabelled crystal (U).
        unlabelled: Scores (U,).
        threshold: From which score on a crystal is flagged.

    Returns:
        By element, in alphabetical order: ``heldout`` (number), ``recall``, ``recall_se``, and where unlabelled
        crystals contain it ``unlabelled``, ``flagged``, ``flagged_se``.
    """
    known = _by_element(elements, heldout, threshold)
    others = _by_element(unlabelled_elements, unlabelled, threshold)
    rows: dict[str, Figures] = {}
    for element, (count, recall) in sorted(known.items()):
        rows[element] = {"heldout": count, "recall": recall, "recall_se": binomial_error(recall, count)}
        if element in others:
            number, flagged = others[element]
            error = binomial_error(flagged, number)
            rows[element] |= {"unlabelled": number, "flagged": flagged, "flagged_se": error}
    return rows


def agreement(scores: Mapping[str, float], published: Mapping[str, float]) -> Figures:
    """Return the rank correlation (Spearman) with another table of scores, over the ids that both have.

    Args:
        scores: By id.
        published: By id, for example published CLscores.

    Returns:
        ``n``, ``spearman`` and ``spearman_se`` (by Fisher's transform, variance 1.06 / (n - 3) on its scale).

    Raises:
        DataError: Fewer than four ids in common, or one side is constant.
    """
    from scipy.stats import spearmanr

    both = sorted(set(scores) & set(published))
    pairs = np.array([(scores[name], published[name]) for name in both], dtype=np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) < 4:
        raise DataError(f"rank correlation: {len(pairs)} ids in common with a score on both sides, at least 4 wanted")
    if (np.ptp(pairs, axis=0) == 0).any():
        raise DataError("rank correlation: one of the two tables has the same score for all")
    rho = float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
    return {"n": len(pairs), "spearman": rho, "spearman_se": float((1 - rho**2) * np.sqrt(1.06 / (len(pairs) - 3)))}


def binomial_error(share: float, number: int) -> float:
    """Return the standard error of a share of a number of draws."""
    return float(np.sqrt(share * (1 - share) / number))


def _lee_liu(recall: float, flagged: float, positives: int, others: int) -> Figures:
    score = recall**2 / flagged
    parts = (
        2 * binomial_error(recall, positives) * recall / flagged,
        score / flagged * binomial_error(flagged, others),
    )
    return {"lee_liu": score, "lee_liu_se": float(np.hypot(*parts))}


def _corrected(figures: Figures, alpha: float) -> Figures:
    if not 0 <= alpha < 1:
        raise DataError(f"share of positives {alpha}: expected a number from 0 and below 1")
    area = (figures["roc_auc_unlabelled"] - alpha / 2) / (1 - alpha)
    found: Figures = {"alpha": alpha, "roc_auc_corrected": area}
    found["roc_auc_corrected_se"] = figures["roc_auc_unlabelled_se"] / (1 - alpha)
    if figures["flagged"] > 0:
        found["precision_estimated"] = min(1.0, alpha * figures["recall"] / figures["flagged"])
    return found


def _redrawn_error(known: Array, others: Array, share: float, repeats: int, seed: int) -> float:
    rng = np.random.default_rng(seed)

    def redrawn(scores: Array) -> Array:
        return rng.choice(scores, len(scores))

    found = [recall_at(redrawn(known), redrawn(others), share) for _ in range(repeats)]
    return float(np.std(found, ddof=1))


def _beaten(ours: Array, theirs: Array) -> Array:
    """Return which share of their scores each of ours beats; an equal one counts half."""
    ordered = np.sort(theirs)
    below, up_to = (np.searchsorted(ordered, ours, side=side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(ordered))


def _with_truth(scores: ArrayLike, truth: ArrayLike, what: str) -> tuple[Array, NDArray[np.bool_]]:
    values, classes = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    if values.shape != classes.shape:
        raise DataError(f"{what}: {values.size} scores, {classes.size} labels")
    known = ~np.isnan(values)
    if not np.isin(classes, (0, 1)).all():
        raise DataError(f"{what}: labels other than true and false")
    if not classes[known].any():
        raise DataError(f"{what}: none among {known.sum()} crystals with a score")
    return scores_of(values, what), classes[known].astype(bool)


def _by_element(
    elements: Sequence[Collection[str]], scores: ArrayLike, threshold: float
) -> dict[str, tuple[int, float]]:
    """Return by element the number of crystals with a score, and which share of them reaches the threshold."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) != len(elements):
        raise DataError(f"by element: {len(values)} scores, elements of {len(elements)} crystals")
    found: dict[str, list[bool]] = {}
    for symbols, score in zip(elements, values, strict=True):
        if not np.isnan(score):
            for symbol in set(symbols):
                found.setdefault(symbol, []).append(bool(score >= threshold))
    return {element: (len(flags), float(np.mean(flags))) for element, flags in found.items()}
