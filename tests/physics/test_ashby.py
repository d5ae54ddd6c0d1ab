"""Material indices, guide lines and Pareto fronts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgnn.errors import DataError
from cgnn.physics.ashby import INDICES, Index, pareto_front

few = st.integers(0, 4).map(float)


def by_brute_force(values: np.ndarray) -> set[int]:
    rows = range(len(values))
    beaten = {i for i in rows for j in rows if (values[j] >= values[i]).all() and (values[j] > values[i]).any()}
    return {i for i in rows if i not in beaten and not np.isnan(values[i]).any()}


@given(st.lists(st.tuples(few, few), max_size=30))
def test_front_of_two_against_brute_force(points: list[tuple[float, float]]) -> None:
    values = np.array(points).reshape(-1, 2)
    front = pareto_front([values[:, 0], values[:, 1]])
    assert set(front.tolist()) == by_brute_force(values)
    assert (np.diff(values[front, 0]) <= 0).all()


@given(st.lists(st.tuples(few, few, few), max_size=30))
def test_front_of_three_against_brute_force(points: list[tuple[float, float, float]]) -> None:
    values = np.array(points).reshape(-1, 3)
    assert set(pareto_front(list(values.T)).tolist()) == by_brute_force(values)


def test_front_of_many_points_with_gaps_and_directions() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 2000))
    x[::50], y[7] = np.nan, np.inf
    known = np.where(np.isnan(x), -np.inf, x)
    expected = by_brute_force(np.stack([known, -y], axis=1)) - set(np.flatnonzero(np.isnan(x)).tolist())
    assert set(pareto_front([x, y], [True, False]).tolist()) == expected
    assert pareto_front([[1.0, 2.0, 3.0]]).tolist() == [2]
    assert pareto_front([[], []]).tolist() == []


def test_what_has_no_front() -> None:
    with pytest.raises(DataError, match="one or more columns of equal length"):
        pareto_front([[1.0, 2.0], [1.0]])
    with pytest.raises(DataError, match="one or more columns"):
        pareto_front([])
    with pytest.raises(DataError, match="expected 2 directions, got 1"):
        pareto_front([[1.0], [1.0]], [True])


@pytest.mark.parametrize("name", INDICES)
def test_guide_lines_hold_the_index(name: str) -> None:
    index = INDICES[name]
    x_name, y_name = index.powers
    x = np.geomspace(0.1, 100, 7)
    y = index.guide_line(2.5, x_name, y_name, x)
    assert index.value({x_name: x, y_name: y}) == pytest.approx(np.full(7, 2.5), rel=1e-9)
    slope = np.diff(np.log(y)) / np.diff(np.log(x))
    assert slope == pytest.approx(np.full(6, -index.powers[x_name] / index.powers[y_name]), rel=1e-9)
    assert index.meaning
    assert index.source


def test_indices_refuse_what_they_can_not_use() -> None:
    index = Index({"a": 1.0, "b": 2.0}, "x", "y")
    assert index.value({"a": [2.0, 3.0], "b": 3.0}).tolist() == [18.0, 27.0]
    with pytest.raises(DataError, match="index: no values of b"):
        index.value({"a": 1.0})
    with pytest.raises(DataError, match=r"^b: expected a finite number above 0, got -1$"):
        index.value({"a": 1.0, "b": -1.0})
    with pytest.raises(DataError, match="the index is one of a, b, not of a and c"):
        index.guide_line(1.0, "a", "c", [1.0])
