"""The best of many in passes: as if all were sorted at once, in little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cgnn.physics.ashby import pareto_front
from cgnn.screen import selection
from cgnn.screen.selection import Scored, select


def parts(scores: np.ndarray, formulas: list[str] | None = None, size: int = 50) -> Any:
    def scored() -> Iterator[Scored]:
        for number, first in enumerate(range(0, len(scores), size)):
            block = scores[first : first + size]
            names = [f"c-{row:06d}" for row in range(first, first + len(block))]
            found = formulas[first : first + size] if formulas else [""] * len(block)
            yield Scored(number, np.arange(len(block)), names, found, block)

    return scored


@pytest.mark.parametrize("pool", [1, 7, 4096])
@pytest.mark.parametrize("keep", [1, 13, 500])
def test_the_best_of_all(pool: int, keep: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "POOL", pool)
    scores = rng.integers(0, 100, (400, 1)).astype(float)  # with many equals
    found = select(parts(scores), keep)
    assert [e.material_id for e in found.kept] == [
        f"c-{r:06d}" for r in np.argsort(-scores[:, 0], kind="stable")[:keep]
    ]


@pytest.mark.parametrize("pool", [1, 4096])
def test_of_the_same_the_best_stays(pool: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers stand for crystals: those that are near each other are the same, which is not transitive."""
    monkeypatch.setattr(selection, "POOL", pool)
    values, formulas = rng.uniform(0, 10, 300), [f"f{row % 3}" for row in range(300)]
    scores = rng.normal(size=(300, 1))
    calls: list[int] = []

    def crystals(places: Any) -> Any:
        calls.append(len(places))
        return [values[50 * number + row] for number, row in places]

    found = select(parts(scores, formulas), 20, lambda a, b: abs(a - b) < 0.4, crystals)
    kept: list[int] = []
    expected: dict[int, int] = {}
    for row in np.argsort(-scores[:, 0]).tolist():
        twins = [k for k in kept if formulas[k] == formulas[row] and abs(values[k] - values[row]) < 0.4]
        if len(kept) == 20:
            break
        if twins:
            expected[row] = twins[0]
        else:
            kept.append(row)
    assert [int(entry.material_id[2:]) for entry in found.kept] == kept
    assert {50 * n + r: int(e.material_id[2:]) for (n, r), e in found.duplicates.items()} == expected
    assert expected
    assert max(calls) <= 256


def test_fronts_one_after_another(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(300, 2))
    found = [int(entry.material_id[2:]) for entry in select(parts(scores), 60).kept]
    left = np.arange(300)
    while found:
        front = set(left[pareto_front(list(scores[left].T))].tolist())
        assert set(found[: len(front)]) <= front
        assert len(found) < len(front) or set(found[: len(front)]) == front
        found, left = found[len(front) :], np.setdiff1d(left, list(front))


def test_fewer_than_wanted() -> None:
    assert [e.place for e in select(parts(np.array([[1.0], [2.0]])), 5).kept] == [(0, 1), (0, 0)]
    assert select(parts(np.zeros((0, 1))), 5).kept == []
    assert select(parts(np.zeros((0, 2))), 5).kept == []


@pytest.mark.parametrize("properties", [1, 2])
def test_memory_does_not_grow_with_the_number(properties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "POOL", 200)

    def scored() -> Iterator[Scored]:
        for number in range(200):  # 50,000 crystals
            scores = np.random.default_rng(number).normal(size=(250, properties))
            yield Scored(number, np.arange(250), [f"{number}-{row}" for row in range(250)], [""] * 250, scores)

    tracemalloc.start()
    try:
        found = select(scored, 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.kept) == 20
    assert peak < 2e6  # bytes; 50,000 entries take 20 MB
