"""Active learning: values come back, the model learns, the next ones are proposed; and how fast that finds the best."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Structure

from cgnn.config import build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.errors import ConfigError, DataError
from cgnn.screen import Funnel, build_screen
from cgnn.screen.active import Simulation, network_learner, next_batch, read_values, retrain, simulate
from cgnn.screen.ranking import RANKINGS

BATCH = {"start": 10, "batch": 10, "rounds": 8}


@pytest.fixture
def truth(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(20, 5, 300)


def knowing(truth: np.ndarray, width: float = 1e-3) -> Any:
    """Something that learns all at once."""
    return lambda known: truth[:, None] + width * np.linspace(-1, 1, 21)


@pytest.mark.parametrize("by", [name for name, ranking in RANKINGS.items() if not ranking.is_front])
def test_who_knows_all_finds_the_best_at_once(by: str, truth: np.ndarray) -> None:
    # a start without the best makes the thresholds, which are the best known, worth beating
    found = simulate(truth, knowing(truth, 3.0), by, **BATCH)
    assert found.found[1] == found.best == 3
    assert found.evaluated[:3] == (10, 20, 30)
    assert found.needed(1.0) == 20


def test_random_order_takes_what_it_takes_on_average() -> None:
    truth = np.arange(60.0)
    runs = [
        simulate(truth, lambda known: truth[:, None], "random", start=1, batch=1, rounds=59, share=0.05, seed=seed)
        for seed in range(300)
    ]
    needed = [run.needed(1.0) for run in runs]
    assert runs[0].best == 3
    assert runs[0].needed_at_random(1.0) == pytest.approx(3 * 61 / 4)
    # of the mean of 300 orders, whose standard deviation is 12: four standard errors are 2.8
    assert np.mean(needed) == pytest.approx(3 * 61 / 4, abs=2.8)
    assert np.isnan(Simulation(60, 3, (1, 2), (0, 1)).needed(1.0))
    assert Simulation(60, 3, (1, 2), (0, 1)).needed(0.3) == 2


def test_nothing_is_known_that_was_not_asked_for(truth: np.ndarray) -> None:
    seen: list[np.ndarray] = []

    def learn(known: np.ndarray) -> np.ndarray:
        seen.append(known)
        guess = np.full((len(truth), 1), truth[known].mean())
        guess[known] = truth[known][:, None]
        return guess

    found = simulate(truth, learn, "value", **BATCH)
    assert [len(known) for known in seen] == list(found.evaluated[:-1])
    assert all(set(a) < set(b) and len(set(b)) == len(b) for a, b in pairwise(seen))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"by": "best"}, "unknown ranking"), ({"start": 300}, "expected finite values of more than 300")],
)
def test_bad_simulations(change: dict[str, Any], message: str, truth: np.ndarray) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        simulate(truth, knowing(truth), **{**BATCH, **change})


def test_a_network_learns_from_few(small_settings: dict[str, Any], tmp_path: Path) -> None:
    config = build({**small_settings, "train": {**small_settings["train"], "epochs": 1}})
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    rows = np.arange(2, 38)
    learn = network_learner(config, dataset, rows, tmp_path, of="hardness_chen", draws=50)
    known = np.arange(20)
    draws = learn(known)
    assert draws.shape == (36, 50)
    assert np.isfinite(draws).all()
    assert (draws >= 0).all()
    np.testing.assert_array_equal(learn(known), draws)  # a finished fit is not done again, and gives the same


# Values that come back


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_values_are_read(small_settings: dict[str, Any], tmp_path: Path) -> None:
    targets = build(small_settings).targets
    path = write(tmp_path / "v.csv", "material_id,bulk_modulus,shear_modulus.vrh\na,100,\nb,,50.5\nc,,\n")
    assert read_values(path, targets) == {"a": {"bulk_modulus.vrh": 100.0}, "b": {"shear_modulus.vrh": 50.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,bulk_modulus\na,3\n", "no ids: expected a column material_id, got name, bulk_modulus"),
        ("material_id,bulk_moduls\na,3\n", "unknown target 'bulk_moduls'; did you mean 'bulk_modulus'"),
        ("material_id\na\n", "no values: expected a column such as bulk_modulus"),
        ("material_id,bulk_modulus\na,hard\n", "line 2: bulk_modulus: expected a number, got 'hard'"),
        ("material_id,bulk_modulus\na,3\nb,-3\n", "line 3: bulk_modulus: expected a number above 0, got -3"),
        ("material_id,bulk_modulus\na,3\na,4\n", "line 3: 'a' comes twice"),
        ("", "no ids"),
    ],
)
def test_bad_values(text: str, message: str, small_settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_values(write(tmp_path / "v.csv", text), build(small_settings).targets)


def test_a_round(
    small_settings: dict[str, Any], trained: Path, embedded_documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Screen, measure two finalists, learn from them, and get others."""
    candidates = tmp_path / "candidates"
    candidates.mkdir()
    for number, document in enumerate(embedded_documents[1::40]):
        Structure.from_dict(document["structure"]).to(filename=str(candidates / f"x{number}.cif"))
    stages = [{"kind": "predict", "model": str(trained)}, {"kind": "rank", "by": "value", "of": "shear_modulus"}]
    settings = build_screen({"stages": [stages[0], {**stages[1], "keep": 5}]})
    from cgnn.data.records import blocks

    first = Funnel(settings, "cpu").run(blocks(candidates), tmp_path / "first")
    finalists = first.table["material_id"].tolist()
    assert len(finalists) == 5
    config = build(small_settings)
    table = "".join(f"{name},120,60\n" for name in finalists[:2])
    values = read_values(write(tmp_path / "v.csv", f"material_id,bulk_modulus,shear_modulus\n{table}"), config.targets)
    run = retrain(config, first.structures(), values, tmp_path / "round")
    used = {*run.split.train, *run.split.val, *run.split.test}
    assert set(finalists[:2]) <= used
    assert len(used) == 42
    second = next_batch(settings, run, candidates, values, tmp_path / "second", 4)
    assert len(second.table) == 4
    assert not set(second.table["material_id"]) & set(values)
    assert "left out: it was measured" in second.why(finalists[0])
    with pytest.raises(DataError, match="unknown crystal 'mp-1'"):
        retrain(config, first.structures(), {"mp-1": {"bulk_modulus.vrh": 3.0}}, tmp_path / "other")
