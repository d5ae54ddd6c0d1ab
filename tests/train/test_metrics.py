import json
import math

import numpy as np
import pytest
import sklearn.metrics as reference

from cgnn.errors import CheckpointError, DataError
from cgnn.targets import Target
from cgnn.train.metrics import COLUMNS, Baseline, evaluate, learned_unit, table, to_text

BULK = Target(name="bulk_modulus", unit="GPa", transform="log10")
ENERGY = Target(name="formation_energy", unit="eV/atom")
METAL = Target(name="is_metal", task="binary")
SYSTEM = Target(name="crystal_system", task="multiclass", classes=("cubic", "hexagonal", "other", "never"))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def score(target, truth, prediction, baseline=None):
    known = {} if baseline is None else {target.name: baseline}
    return evaluate([target], {target.name: truth}, {target.name: prediction}, known)[target.name]


def test_regression_by_hand():
    truth, prediction = [10.0, 100.0, np.nan, 1000.0], [20.0, 100.0, 5.0, 500.0]
    found = score(BULK, truth, prediction, Baseline.fit(BULK, [1.0, 100.0, np.nan]))
    mean = 1110 / 3
    total = (10 - mean) ** 2 + (100 - mean) ** 2 + (1000 - mean) ** 2
    two = math.log10(2)
    assert found == pytest.approx(
        {
            "n": 3,
            "mae": 510 / 3,
            "rmse": math.sqrt((100 + 250000) / 3),
            "r2": 1 - 250100 / total,
            "baseline_mae": (40.5 + 49.5 + 949.5) / 3,  # the mean of 1 and 100 GPa is 50.5 GPa
            "mae_log10": 2 * two / 3,
            "rmse_log10": math.sqrt(2 * two**2 / 3),
            "r2_log10": 1 - 2 * two**2 / 2,
            "baseline_mae_log10": (0 + 1 + 2) / 3,  # the mean of log10 1 and log10 100 is 1
        }
    )


def test_regression_without_transform_against_sklearn(random):
    truth = random.normal(size=50)
    prediction = truth + 0.1 * random.normal(size=50)
    found = score(ENERGY, truth, prediction, Baseline.fit(ENERGY, [1.0, 2.0]))
    assert found == pytest.approx(
        {
            "n": 50,
            "mae": reference.mean_absolute_error(truth, prediction),
            "rmse": reference.root_mean_squared_error(truth, prediction),
            "r2": reference.r2_score(truth, prediction),
            "baseline_mae": reference.mean_absolute_error(truth, np.full(50, 1.5)),
        }
    )


def test_unknown_truth_changes_nothing(random):
    for target, prediction in (
        (BULK, random.uniform(1, 100, 40)),
        (METAL, random.uniform(0, 1, 40)),
        (SYSTEM, random.dirichlet(np.ones(4), 40)),
    ):
        truth = random.integers(1, 3, 40) % 2 if target is METAL else random.integers(1, 3, 40)
        masked = np.where(np.arange(40) % 3, truth, np.nan)
        known = np.isfinite(masked)
        assert score(target, masked, prediction) == score(target, truth[known], prediction[known])


def test_scores_that_do_not_exist_are_left_out():
    assert score(ENERGY, [np.nan, np.nan], [1.0, 2.0]) == {"n": 0}
    assert score(ENERGY, [1.0], [1.5]) == {"n": 1, "mae": 0.5, "rmse": 0.5}
    assert "roc_auc" not in score(METAL, [1.0, 1.0], [0.2, 0.9])
    assert "baseline_accuracy" not in score(METAL, [1.0, 0.0], [0.2, 0.9])


@pytest.mark.parametrize("transform", ["log10", "log", "sqrt"])
def test_predictions_outside_the_domain_count_as_bad(transform):
    target = Target(name="gap", unit="eV", transform=transform)
    found = score(target, [1.0, 4.0], [-1.0, 4.0])
    assert all(math.isfinite(value) for value in found.values())
    assert found[f"mae_{transform}"] >= 0.5


def test_scores_of_a_scale_that_is_kept_are_told_once():
    gap = Target(name="gap", unit="eV", transform="nonnegative")
    assert score(gap, [0.0, 4.0], [0.0, 3.0]) == score(ENERGY, [0.0, 4.0], [0.0, 3.0])


def test_binary_against_sklearn(random):
    truth = random.integers(0, 2, 60)
    prediction = np.clip(0.3 * truth + random.uniform(0, 0.7, 60), 0, 1)
    called = prediction >= 0.5
    assert score(METAL, truth, prediction, Baseline.fit(METAL, [1, 1, 0])) == pytest.approx(
        {
            "n": 60,
            "accuracy": reference.accuracy_score(truth, called),
            "roc_auc": reference.roc_auc_score(truth, prediction),
            "f1": reference.f1_score(truth, called),
            "log_loss": reference.log_loss(truth, prediction),
            "baseline_accuracy": truth.mean(),
        }
    )


def test_binary_certain_and_wrong_stays_finite():
    found = score(METAL, [1.0, 0.0], [0.0, 1.0])
    assert found["log_loss"] == pytest.approx(-math.log(np.finfo(float).eps))
    assert (found["accuracy"], found["f1"], found["roc_auc"]) == (0, 0, 0)


def test_multiclass_against_sklearn(random):
    truth = random.integers(0, 3, 90)
    prediction = random.dirichlet(np.ones(4), 90) + 0.5 * np.eye(4)[truth]
    prediction /= prediction.sum(axis=1, keepdims=True)
    called = prediction.argmax(axis=1)
    baseline = Baseline.fit(SYSTEM, [2, 2, 0, np.nan])
    assert score(SYSTEM, truth, prediction, baseline) == pytest.approx(
        {
            "n": 90,
            "accuracy": reference.accuracy_score(truth, called),
            "f1_macro": reference.f1_score(truth, called, average="macro", zero_division=0),
            "log_loss": reference.log_loss(truth, prediction, labels=range(4)),
            "baseline_accuracy": (truth == 2).mean(),
        }
    )


def test_float32_probabilities_raise_no_warning(random):
    prediction = random.dirichlet(np.ones(4), 500).astype(np.float32)
    assert score(SYSTEM, random.integers(0, 4, 500), prediction)["n"] == 500


def test_several_targets_with_gaps_in_the_labels():
    truth = {"bulk_modulus": [10.0, np.nan], "is_metal": [np.nan, 1.0]}
    prediction = {"bulk_modulus": [10.0, 20.0], "is_metal": [0.5, 1.0]}
    found = evaluate([BULK, METAL], truth, prediction, {})
    assert list(found) == ["bulk_modulus", "is_metal"]
    assert found["bulk_modulus"]["mae"] == 0
    assert found["is_metal"]["accuracy"] == 1


def test_baseline_survives_json():
    baseline = Baseline.fit(BULK, np.array([1.0, 100.0]))
    assert baseline == Baseline(50.5, 1.0)
    assert Baseline.from_dict(json.loads(json.dumps(baseline.to_dict()))) == baseline
    assert Baseline.fit(METAL, [0, 1, 1, np.nan]) == Baseline(1.0, 1.0)


def test_baseline_without_labels():
    with pytest.raises(DataError, match=r"target 'bulk_modulus': no training crystal has a label"):
        Baseline.fit(BULK, [np.nan])


@pytest.mark.parametrize(
    "values", [{}, {"value": 1.0}, {"value": 1.0, "learned": None}, {"value": 1.0, "learned": math.nan}]
)
def test_bad_stored_baseline(values):
    with pytest.raises(CheckpointError, match="expected numbers 'value' and 'learned'"):
        Baseline.from_dict(values)


def test_table_has_units_and_baselines():
    truth = {"bulk_modulus": [10.0, 1000.0], "is_metal": [0.0, 1.0]}
    prediction = {"bulk_modulus": [10.0, 2000.0], "is_metal": [0.1, 0.9]}
    baseline = {"bulk_modulus": Baseline(100.0, 2.0), "is_metal": Baseline(1.0, 1.0)}
    rows = table(evaluate([BULK, METAL], truth, prediction, baseline), [BULK, METAL])
    assert ("bulk_modulus", "labels", "2", "", "") in rows
    assert ("bulk_modulus", "MAE", "500", "495", "GPa") in rows
    assert ("bulk_modulus", "MAE (log10)", "0.1505", "1", "log10(GPa)") in rows
    assert ("is_metal", "accuracy", "1", "0.5", "") in rows
    assert not any("baseline" in row[1] for row in rows)


def test_text_is_aligned():
    text = to_text({"bulk_modulus": {"n": 2, "mae": 12.345678, "baseline_mae": 70.0}}, [BULK])
    header, rule, first, second = text.split("\n")
    assert header.split() == list(COLUMNS)
    assert set(rule) == {"-", " "}
    assert first.split() == ["bulk_modulus", "labels", "2"]
    assert second.split() == ["bulk_modulus", "MAE", "12.35", "70", "GPa"]
    assert header.index("value") + len("value") == second.index("12.35") + len("12.35")


def test_learned_unit():
    assert learned_unit(BULK) == "log10(GPa)"
    assert learned_unit(ENERGY) == "eV/atom"
    assert learned_unit(Target(name="ratio", transform="log")) == "log"
