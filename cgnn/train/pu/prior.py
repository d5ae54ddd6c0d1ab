r"""How many of the unlabelled are positive, and what a score means after it.

Written for scores :math:`g` of classifiers that tell positives from a draw of unlabelled crystals, :math:`r` of these
for each positive. With the densities :math:`p` of positives and :math:`u = \alpha p + (1 - \alpha) n` of unlabelled
crystals such a classifier learns

.. math:: g = \frac{p}{p + r u}, \qquad \frac{p}{u} = \frac{r g}{1 - g}, \qquad
    P(\text{positive} \mid x) = \alpha \frac{p}{u}.

All of it rests on the labelled positives being drawn like the positives among the unlabelled. Crystals that were made
and reported differ from those that could be made, so these are estimates under that assumption, not measurements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.errors import DataError, choose

Array = NDArray[np.float64]

DELTA, GAMMA = 0.1, 0.01
"""Level of the bound and weight of its width in `best_bin`, as its authors chose them."""


def elkan_noto(positives: ArrayLike, unlabelled: ArrayLike, ratio: float = 1.0) -> float:
    r"""Return the share of positives among the unlabelled from the mean score of positives.

    .. math:: c = P(\text{labelled} \mid \text{positive}) = \frac1P \sum_i g_i, \qquad \alpha = \frac{1 - c}{c r}

    Exact where positives and negatives do not overlap and the scores are calibrated; otherwise an upper estimate,
    because scores of positives that look like negatives pull c down.

    Args:
        positives: Scores of held-out positives (P,), within [0, 1].
        unlabelled: Out-of-bag scores (U,); of no influence here.
        ratio: Unlabelled crystals for each positive in a bag, r.

    Raises:
        DataError: No scores, or scores outside of [0, 1].

    Source: C. Elkan and K. Noto, KDD 2008, 213, doi:10.1145/1401890.1401920, estimator e1.
    """
    known, _ = given(positives, unlabelled)
    c = float(known.mean())
    return 1.0 if c == 0 else float(np.clip((1 - c) / (c * ratio), 0, 1))


def best_bin(positives: ArrayLike, unlabelled: ArrayLike, ratio: float = 1.0) -> float:
    r"""Return the share of positives among the unlabelled from the scores above the best threshold.

    With the shares :math:`q_p(z)`, :math:`q_u(z)` of scores that reach z, and a bound on what P and U draws can miss,

    .. math:: \hat z = \arg\min_z \frac{q_u(z) + (1 + \gamma) b}{q_p(z)}, \quad
        b = \sqrt{\frac{\ln(4 / \delta)}{2 U}} + \sqrt{\frac{\ln(4 / \delta)}{2 P}}, \quad
        \alpha = \frac{q_u(\hat z)}{q_p(\hat z)}.

    Needs only the order of the scores. An upper estimate: exact where the best-scored crystals are all positive.

    Args:
        positives: Scores of held-out positives (P,), within [0, 1].
        unlabelled: Out-of-bag scores (U,).
        ratio: Unlabelled crystals for each positive in a bag; of no influence here.

    Raises:
        DataError: No scores, or scores outside of [0, 1].

    Source: S. Garg et al., NeurIPS 34, 8532 (2021), arXiv:2111.00980, algorithm 1 (best bin estimation).
    """
    known, others = given(positives, unlabelled)
    thresholds = np.unique(known)
    reached, flagged = share_reaching(known, thresholds), share_reaching(others, thresholds)
    bound = sum(np.sqrt(np.log(4 / DELTA) / (2 * len(scores))) for scores in (others, known))
    best = int(np.argmin((flagged + (1 + GAMMA) * bound) / reached))
    return float(min(flagged[best] / reached[best], 1.0))


PRIORS: dict[str, Callable[..., float]] = {"best_bin": best_bin, "elkan_noto": elkan_noto}
"""Ways to estimate alpha: ``(positives, unlabelled, ratio=1.0) -> float`` in [0, 1]."""


def prior_error(
    way: str, positives: ArrayLike, unlabelled: ArrayLike, ratio: float = 1.0, *, repeats: int = 50, seed: int = 0
) -> float:
    """Return the standard error of a prior by drawing crystals anew with replacement.

    It knows nothing of the bias of the way itself.

    Args:
        way: An entry of `PRIORS`.
        positives: Scores of held-out positives (P,).
        unlabelled: Out-of-bag scores (U,).
        ratio: Unlabelled crystals for each positive in a bag.
        repeats: Number of draws.
        seed: For the draws.
    """
    estimate, rng = choose(PRIORS, way, "prior"), np.random.default_rng(seed)
    sets = given(positives, unlabelled)
    found = [estimate(*(rng.choice(scores, len(scores)) for scores in sets), ratio) for _ in range(repeats)]
    return float(np.std(found, ddof=1))


def labelled_share(alpha: float, labelled: int, unlabelled: int) -> float:
    r"""Return the share of all positives that have a label, c.

    .. math:: c = \frac{L}{L + \alpha U}

    Args:
        alpha: Share of positives among the unlabelled.
        labelled: Number of labelled positives L.
        unlabelled: Number of unlabelled crystals U.
    """
    return labelled / (labelled + alpha * unlabelled)


def by_odds(scores: Array, positives: Array, unlabelled: Array, ratio: float) -> Array:
    """Return p / u of scores that are taken as calibrated: r g / (1 - g)."""
    with np.errstate(divide="ignore"):
        return ratio * scores / (1 - scores)


def by_isotonic(scores: Array, positives: Array, unlabelled: Array, ratio: float) -> Array:
    """Return p / u as the likeliest non-decreasing function of the score, by steps."""
    from sklearn.isotonic import IsotonicRegression

    seen, labels, weights = _balanced(positives, unlabelled)
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(seen, labels, weights)
    return by_odds(np.asarray(fitted.predict(scores), dtype=np.float64), positives, unlabelled, 1.0)


def by_platt(scores: Array, positives: Array, unlabelled: Array, ratio: float) -> Array:
    """Return p / u as a power of the odds times a factor (logistic regression on the log-odds)."""
    from sklearn.linear_model import LogisticRegression

    seen, labels, weights = _balanced(positives, unlabelled)
    # next to no shrinkage: two coefficients need none
    fitted = LogisticRegression(C=1e6).fit(_log_odds(seen)[:, None], labels, weights)
    with np.errstate(over="ignore"):  # where the two sides do not overlap
        return np.exp(np.asarray(fitted.decision_function(_log_odds(scores)[:, None]), dtype=np.float64))


CALIBRATIONS: dict[str, Callable[[Array, Array, Array, float], Array]] = {
    "isotonic": by_isotonic,
    "odds": by_odds,
    "platt": by_platt,
}
"""Ways from scores to the ratio of densities p / u: ``(scores, positives, unlabelled, ratio) -> (n,)``."""


def calibrated(
    scores: ArrayLike,
    alpha: float,
    positives: ArrayLike,
    unlabelled: ArrayLike,
    *,
    way: str = "isotonic",
    ratio: float = 1.0,
) -> Array:
    r"""Return the probability that an unlabelled crystal is positive.

    .. math:: P(\text{positive} \mid g) = \min\!\left(1, \alpha \frac{p(g)}{u(g)}\right)

    The ratio of densities is learned from held-out positives and out-of-bag scores, each side with a total weight of
    one (``isotonic``, ``platt``), or taken from the score itself: r g / (1 - g) (``odds``). The mean of many bags is
    nearer to one half than any bag, so a mean score is not calibrated by itself.

    Args:
        scores: Any scores (n,); ``nan`` (no votes) stays ``nan``.
        alpha: Share of positives among the unlabelled.
        positives: Scores of held-out positives (P,).
        unlabelled: Out-of-bag scores (U,).
        way: An entry of `CALIBRATIONS`.
        ratio: Unlabelled crystals for each positive in a bag; for ``odds``.

    Returns:
        (n,); with ``isotonic`` and ``odds`` it never falls where the score rises.

    Raises:
        DataError: No scores, scores outside of [0, 1], or alpha outside of [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise DataError(f"share of positives {alpha}: expected a number from 0 to 1")
    values = np.asarray(scores, dtype=np.float64)
    known = np.isfinite(values)
    found = np.full(values.shape, np.nan)
    sides = given(positives, unlabelled)
    if known.any():
        ratios = choose(CALIBRATIONS, way, "calibration")(values[known], *sides, ratio)
        # 0 times an infinite ratio: with no positives left there is none here either
        found[known] = np.minimum(alpha * ratios, 1.0) if alpha > 0 else 0.0
    return found


def threshold_for(recall: float, heldout: ArrayLike) -> float:
    """Return the highest threshold at which at least a share of the held-out positives is flagged.

    Flagged is what reaches the threshold.

    Args:
        recall: Wanted share, above 0 and up to 1.
        heldout: Scores of held-out positives (P,).

    Raises:
        DataError: The share is no such number, or there are no scores.
    """
    if not 0 < recall <= 1:
        raise DataError(f"recall {recall}: expected a share above 0 and up to 1, such as 0.9")
    ordered = np.sort(scores_of(heldout, "held-out positives"))[::-1]
    return float(ordered[int(np.ceil(recall * len(ordered) - 1e-9)) - 1])


def given(positives: ArrayLike, unlabelled: ArrayLike) -> tuple[Array, Array]:
    """Return the scores of both sides, checked."""
    return scores_of(positives, "held-out positives"), scores_of(unlabelled, "unlabelled crystals")


def scores_of(values: ArrayLike, what: str) -> Array:
    """Return scores within [0, 1] without the ``nan`` of crystals that no bag could score.

    Raises:
        DataError: None is left, or one is no probability.
    """
    scores = np.asarray(values, dtype=np.float64).ravel()
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        raise DataError(f"{what}: none has a score")
    wrong = scores[(scores < 0) | (scores > 1)]
    if len(wrong):
        raise DataError(f"{what}: {len(wrong)} scores are no probabilities, the first is {wrong[0]:g}")
    return scores


def share_reaching(scores: ArrayLike, thresholds: ArrayLike) -> Array:
    """Return the share of the scores that reach each threshold."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    return 1 - np.searchsorted(ordered, np.asarray(thresholds, dtype=np.float64), side="left") / len(ordered)


def _balanced(positives: Array, unlabelled: Array) -> tuple[Array, Array, Array]:
    """Return scores, labels and weights of both sides, half of the weight on each."""
    sizes = (len(positives), len(unlabelled))
    labels = np.repeat([1.0, 0.0], sizes)
    weights = np.repeat([sum(sizes) / (2 * size) for size in sizes], sizes)
    return np.concatenate([positives, unlabelled]), labels, weights


def _log_odds(scores: Array) -> Array:
    inside = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(inside / (1 - inside))
