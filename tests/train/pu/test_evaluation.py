import numpy as np
import pytest
from scipy.stats import norm, spearmanr
from sklearn.metrics import roc_auc_score

from cgnn.errors import DataError
from cgnn.train.pu.evaluation import (
    MEANINGS,
    SHARE,
    agreement,
    by_element,
    evaluate,
    hits,
    known_truth,
    later,
    recall_at,
    roc,
    roc_auc,
)

FEW = {"repeats": 5}


@pytest.fixture
def scores(rng):
    """Held-out positives, unlabelled; some scores equal."""
    return np.round(rng.beta(5, 2, 300), 2), np.round(rng.beta(2, 3, 700), 2)


def test_recall_never_without_the_share_flagged(scores):
    known, others = scores
    figures = evaluate(known, others, 0.6, **FEW)
    recall, flagged = np.mean(known >= 0.6), np.mean(others >= 0.6)
    assert (figures["recall"], figures["flagged"]) == (recall, flagged)
    assert figures["recall_se"] == pytest.approx(np.sqrt(recall * (1 - recall) / 300), abs=1e-12)
    assert figures["flagged_se"] == pytest.approx(np.sqrt(flagged * (1 - flagged) / 700), abs=1e-12)
    assert figures["lee_liu"] == pytest.approx(recall**2 / flagged, abs=1e-12)
    assert (figures["heldout"], figures["unlabelled"], figures["threshold"]) == (300, 700, 0.6)


def test_every_figure_is_explained(scores):
    figures = evaluate(*scores, alpha=0.2, **FEW)
    numbers = {"heldout", "unlabelled", "threshold", "share", "alpha"}
    assert {name.removesuffix("_se") for name in figures} - numbers == set(MEANINGS)


def test_recall_where_a_share_is_flagged(rng):
    known, others = rng.beta(5, 2, 2000), rng.beta(2, 3, 5000)
    figures = evaluate(known, others)
    threshold = np.quantile(others, 1 - 0.208)
    assert figures["share"] == SHARE == 0.208
    assert figures["threshold_at_share"] == threshold
    assert figures["recall_at_share"] == pytest.approx(np.mean(known >= threshold), abs=1e-3)
    # the threshold scatters too: more than the binomial error of the recall alone
    recall = figures["recall_at_share"]
    assert 1.05 < figures["recall_at_share_se"] / np.sqrt(recall * (1 - recall) / 2000) < 2
    assert evaluate(known, others) == figures
    assert evaluate(known, others, seed=1)["recall_at_share_se"] != figures["recall_at_share_se"]


def test_one_score_for_all_is_a_guess():
    figures = evaluate(np.ones(50), np.ones(80), **FEW)
    assert (figures["recall"], figures["flagged"], figures["lee_liu"]) == (1, 1, 1)
    assert figures["roc_auc_unlabelled"] == 0.5
    assert figures["recall_at_share"] == pytest.approx(0.208, abs=1e-12)


def test_nothing_flagged_has_no_lee_liu_score():
    figures = evaluate([0.9, 0.2], [0.1, 0.3], 0.95, alpha=0.1, **FEW)
    assert "lee_liu" not in figures
    assert "precision_estimated" not in figures


def test_recall_at_shares_by_hand():
    known, others = [0.9, 0.5, 0.5, 0.1], [0.8, 0.5, 0.5, 0.2]
    # thresholds 0.9: (0, 1/4); 0.8: (1/4, 1/4); 0.5: (3/4, 3/4); 0.2: (1, 3/4); 0.1: (1, 1)
    assert [side.tolist() for side in roc(known, others)] == [
        [0, 0, 0.25, 0.75, 1, 1],
        [0, 0.25, 0.25, 0.75, 0.75, 1],
    ]
    wanted = {0.0: 0.25, 0.1: 0.25, 0.25: 0.25, 0.5: 0.5, 0.75: 0.75, 0.9: 0.75, 1.0: 1.0}
    assert recall_at(known, others, list(wanted)) == pytest.approx(list(wanted.values()), abs=1e-9)


def test_a_step_up_at_the_wanted_share_counts():
    # thresholds 0.7 and 0.65 flag the same 0.3 of the unlabelled, which is 1 - 7 / 10 up to rounding
    assert 1 - 7 / 10 > 0.3
    assert recall_at([0.7, 0.65], np.arange(10) / 10, 0.3) == 1


def test_area_agrees_with_scikit_learn(scores):
    known, others = scores
    truth = np.repeat([1, 0], [len(known), len(others)])
    area, error = roc_auc(known, others)
    assert area == pytest.approx(roc_auc_score(truth, np.concatenate(scores)), abs=1e-12)
    wins = (known[:, None] > others) + 0.5 * (known[:, None] == others)
    variance = wins.mean(1).var(ddof=1) / len(known) + wins.mean(0).var(ddof=1) / len(others)
    assert error == pytest.approx(np.sqrt(variance), abs=1e-12)


def test_error_of_the_area_is_that_of_new_draws(rng):
    draws = [roc_auc(norm.cdf(rng.normal(1, 1, 80)), norm.cdf(rng.normal(0, 1, 120))) for _ in range(300)]
    areas, errors = np.array(draws).T
    assert errors.mean() == pytest.approx(areas.std(ddof=1), rel=0.2)


def test_correction_finds_the_area_against_negatives(rng):
    alpha = 0.3
    known, truth = norm.cdf(rng.normal(1, 1, 4000)), rng.random(8000) < alpha
    others = norm.cdf(rng.normal(truth.astype(float), 1))
    figures = evaluate(known, others, alpha=alpha, **FEW)
    assert figures["roc_auc_corrected"] == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.02)
    assert figures["roc_auc_unlabelled"] < figures["roc_auc_corrected"] - 0.05
    assert figures["roc_auc_corrected"] == pytest.approx((figures["roc_auc_unlabelled"] - 0.15) / 0.7, abs=1e-12)
    precision = truth[others >= 0.5].mean()
    assert figures["precision_estimated"] == pytest.approx(precision, abs=0.03)
    with pytest.raises(DataError, match="share of positives 1: expected a number from 0 and below 1"):
        evaluate(known, others, alpha=1, **FEW)


def test_crystals_without_votes_are_left_out(scores):
    known, others = scores
    gaps = evaluate(np.append(known, np.nan), np.append(np.nan, others), alpha=0.1, **FEW)
    assert gaps == evaluate(known, others, alpha=0.1, **FEW)


@pytest.mark.parametrize(
    ("known", "others", "share", "message"),
    [
        ([], [0.5], 0.2, "held-out positives: none has a score"),
        ([0.5], [], 0.2, "unlabelled crystals: none has a score"),
        ([2.0], [0.5], 0.2, "held-out positives: 1 scores are no probabilities, the first is 2"),
        ([0.5], [0.5], 20.8, "share 20.8: expected a number between 0 and 1, such as 0.208"),
    ],
)
def test_bad_input(known, others, share, message):
    with pytest.raises(DataError, match=message):
        evaluate(known, others, share=share)


def test_later_positives():
    scores = np.array([0.9, 0.8, 0.8, 0.3, 0.2, np.nan])
    is_later = np.array([True, True, False, False, False, True])
    rows = later(scores, is_later, (1, 2, 5, 6))
    assert [row["k"] for row in rows] == [1, 2, 5]
    assert [row["precision"] for row in rows] == [1, 0.75, 0.4]  # at 2: one of two with equal scores, by lot
    assert [row["enrichment"] for row in rows] == pytest.approx([2.5, 0.75 / 0.4, 1], abs=1e-12)
    assert [row["recall"] for row in rows] == pytest.approx([0.5, 0.75, 1], abs=1e-12)
    assert rows[1]["enrichment_se"] == pytest.approx(np.sqrt(0.75 * 0.25 / 2) / 0.4, abs=1e-12)


def test_later_of_a_guess_enriches_nothing(rng):
    is_later = rng.random(1000) < 0.2
    (row,) = later(np.full(1000, 0.7), is_later, (100,))
    assert row["enrichment"] == pytest.approx(1, abs=1e-12)
    assert hits(np.array([0.1, 0.2]), np.array([True, False]), 1) == 0


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([0.1, 0.2], [False, False], "crystals found positive later: none among 2 crystals with a score"),
        ([0.1, np.nan], [False, True], "none among 1 crystals"),
        ([0.1, 0.2], [True], "2 scores, 1 labels"),
        ([0.1, 0.2], [1.0, np.nan], "labels other than true and false"),
    ],
)
def test_bad_time_split(scores, truth, message):
    with pytest.raises(DataError, match=message):
        later(scores, truth)


def test_known_truth_written_out_again(rng):
    truth = rng.random(400) < 0.3
    scores = np.clip(rng.normal(0.3 + 0.3 * truth, 0.2), 0, 1)
    figures = known_truth(np.append(scores, np.nan), np.append(truth, True), 0.4)
    called = scores >= 0.4
    precision, recall = truth[called].mean(), called[truth].mean()
    assert figures["n"] == 400
    assert figures["positives"] == truth.mean()
    assert figures["precision"] == pytest.approx(precision, abs=1e-12)
    assert figures["recall"] == pytest.approx(recall, abs=1e-12)
    assert figures["f1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    assert figures["roc_auc"] == pytest.approx(np.mean(scores[truth][:, None] > scores[~truth]), abs=2e-3)  # some equal
    steps = [truth[scores >= z].mean() for z in scores[truth]]
    assert figures["average_precision"] == pytest.approx(np.mean(steps), abs=1e-9)
    all_positive = known_truth(np.ones(400), truth)
    assert all_positive["f1"] == pytest.approx(figures["f1_constant"], abs=1e-12)


def test_truth_with_one_class():
    with pytest.raises(DataError, match="all crystals are positive"):
        known_truth([0.1, 0.9], [True, True])


def test_recall_by_element():
    rows = by_element(
        [("Na", "Cl"), ("Na", "O"), ("Cl", "Cl"), ("O",)],
        [0.9, 0.2, 0.5, np.nan],
        [("Na",), ("Na", "K")],
        [0.4, 0.8],
    )
    assert list(rows) == ["Cl", "Na", "O"]
    assert rows["Cl"] == {"heldout": 2, "recall": 1.0, "recall_se": 0.0}  # an element twice counts once
    assert rows["Na"]["recall"] == rows["Na"]["flagged"] == 0.5
    assert rows["Na"]["recall_se"] == pytest.approx(np.sqrt(0.25 / 2), abs=1e-12)
    assert rows["Na"]["unlabelled"] == 2
    assert rows["O"]["heldout"] == 1
    with pytest.raises(DataError, match="by element: 1 scores, elements of 2 crystals"):
        by_element([("O",), ("Na",)], [0.5])


def test_agreement_with_published_scores(rng):
    ours = {f"mp-{i}": float(score) for i, score in enumerate(rng.random(50))}
    theirs = {f"mp-{i + 10}": float(score) for i, score in enumerate(rng.random(50))} | {"mp-20": np.nan}
    figures = agreement(ours, theirs)
    common = [name for name in ours if name in theirs and name != "mp-20"]
    expected = spearmanr([ours[name] for name in common], [theirs[name] for name in common]).statistic
    assert figures["n"] == len(common) == 39
    assert figures["spearman"] == pytest.approx(expected, abs=1e-12)
    assert figures["spearman_se"] == pytest.approx((1 - expected**2) * np.sqrt(1.06 / 36), abs=1e-12)
    with pytest.raises(DataError, match="0 ids in common"):
        agreement(ours, {"mp-1000": 0.5})
    with pytest.raises(DataError, match="the same score for all"):
        agreement(ours, dict.fromkeys(ours, 0.5))
