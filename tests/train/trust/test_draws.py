import json
import math

import numpy as np
import pytest

from cgnn.errors import CheckpointError
from cgnn.targets import Target
from cgnn.train.trust.draws import Correlation, draws

BULK = Target(name="bulk", unit="GPa", transform="log10")
SHEAR = Target(name="shear", unit="GPa", transform="log10")
ENERGY = Target(name="energy", unit="eV/atom")


def together(rng, number, correlation):
    first = rng.normal(size=number)
    return first, correlation * first + np.sqrt(1 - correlation**2) * rng.normal(size=number)


@pytest.mark.parametrize("correlation", [0.7, 0.0, -0.5])
def test_correlation_of_known_residuals(rng, correlation):
    bulk, shear = together(rng, 4000, correlation)
    bulk[0], shear[1] = 500.0, np.nan  # an outlier and a gap
    found = Correlation.fit({"bulk": bulk, "shear": shear})
    assert found.matrix[0, 1] == found.matrix[1, 0] == pytest.approx(correlation, abs=0.05)
    assert np.diag(found.matrix) == pytest.approx([1, 1])


def test_few_pairs_count_as_uncorrelated(rng):
    bulk = rng.normal(size=100)
    shear = np.where(np.arange(100) < 19, bulk, np.nan)
    found = Correlation.fit({"bulk": bulk, "shear": shear, "constant": np.zeros(100)})
    assert np.array_equal(found.matrix, np.eye(3))


def test_the_matrix_is_positive_definite(rng):
    """Pairs over different crystals: together they fit no distribution."""
    parts = np.repeat([0, 1, 2], 200)
    first, second, third = rng.normal(size=(3, 600))
    second = np.where(parts == 0, first, second)
    third = np.where(parts == 1, second, np.where(parts == 2, -first, third))
    gaps = [np.where(parts == missing, np.nan, x) for missing, x in ((1, first), (2, second), (0, third))]
    found = Correlation.fit(dict(zip("abc", gaps, strict=True)))
    assert np.linalg.eigvalsh(found.matrix)[0] > 1e-4
    assert np.diag(found.matrix) == pytest.approx([1, 1, 1])
    assert np.linalg.cholesky(found.matrix) is not None


def test_draws_reproduce_value_width_and_correlation():
    """60,000 draws: means and deviations to 2 % of the width, correlation to 0.02."""
    matrix = np.array([[1.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 1.0]])
    value = {"bulk": [2.0, 1.5], "shear": [1.8, 1.0], "energy": [-1.0, 0.5]}
    sigma = {"bulk": [0.05, 0.1], "shear": [0.1, 0.2], "energy": [0.03, 0.3]}
    names = ("bulk", "shear", "energy")
    found = draws([BULK, SHEAR, ENERGY], value, sigma, Correlation(names, matrix), 60_000, seed=3)
    learned = {name: np.log10(x) if name != "energy" else x for name, x in found.items()}
    for name in names:
        assert found[name].shape == (2, 60_000)
        assert learned[name].mean(axis=1) == pytest.approx(value[name], abs=0.02 * max(sigma[name]))
        assert learned[name].std(axis=1) == pytest.approx(sigma[name], rel=0.02)
    for row in range(2):
        assert np.corrcoef([learned[name][row] for name in names]) == pytest.approx(matrix, abs=0.02)
    first, second = (learned["bulk"][row] for row in range(2))
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0, abs=0.02)  # crystals are independent


def test_draws_of_some_targets_and_by_seed():
    correlation = Correlation(("bulk", "shear"), np.array([[1.0, 0.9], [0.9, 1.0]]))
    first = draws([SHEAR], {"shear": [1.0]}, {"shear": [0.1]}, correlation, 5, seed=1)
    assert list(first) == ["shear"]
    assert (first["shear"] > 0).all()
    again = draws([SHEAR], {"shear": [1.0]}, {"shear": [0.1]}, correlation, 5, seed=1)
    other = draws([SHEAR], {"shear": [1.0]}, {"shear": [0.1]}, correlation, 5, seed=2)
    assert np.array_equal(first["shear"], again["shear"])
    assert not np.array_equal(first["shear"], other["shear"])


def test_draws_of_nothing():
    correlation = Correlation(("bulk",), np.eye(1))
    assert draws([BULK], {"bulk": []}, {"bulk": []}, correlation, 4)["bulk"].shape == (0, 4)
    assert draws([], {}, {}, correlation, 4) == {}


def test_correlation_survives_json(rng):
    bulk, shear = together(rng, 200, 0.5)
    found = Correlation.fit({"bulk": bulk, "shear": shear})
    again = Correlation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.names == found.names
    assert np.array_equal(again.matrix, found.matrix)
    none = Correlation.fit({})
    assert Correlation.from_dict(json.loads(json.dumps(none.to_dict()))).names == ()


HOSTILE = {
    "no mapping": 3,
    "missing": {"targets": []},
    "additional": {"targets": [], "matrix": [], "more": 1},
    "size": {"targets": ["a"], "matrix": [[1.0, 0.0], [0.0, 1.0]]},
    "names": {"targets": [1], "matrix": [[1.0]]},
    "text": {"targets": ["a"], "matrix": [["1.0"]]},
    "nan": {"targets": ["a"], "matrix": [[math.nan]]},
    "diagonal": {"targets": ["a"], "matrix": [[0.5]]},
    "above one": {"targets": ["a", "b"], "matrix": [[1.0, 2.0], [2.0, 1.0]]},
    "lopsided": {"targets": ["a", "b"], "matrix": [[1.0, 0.5], [0.1, 1.0]]},
    "not definite": {"targets": ["a", "b"], "matrix": [[1.0, 1.0], [1.0, 1.0]]},
    "deep": {"targets": ["a"], "matrix": [[[1.0]]]},
}


@pytest.mark.parametrize("values", HOSTILE.values(), ids=HOSTILE)
def test_hostile_correlations_are_refused(values):
    with pytest.raises(CheckpointError, match=r"^correlation: expected"):
        Correlation.from_dict(values)
