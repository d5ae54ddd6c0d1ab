"""PUBagging in scikit-learn's manner, and scores of new crystals."""

import numpy as np
import pytest
from pymatgen.core import Structure
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from cgnn import PUBagging
from cgnn.config import build
from cgnn.errors import ConfigError, DataError
from cgnn.predict import Predictor
from cgnn.predict.pu import Tables

pytestmark = pytest.mark.filterwarnings("ignore:.*were drawn by all.*:UserWarning")


@pytest.fixture(scope="module")
def crystals(embedded_documents):
    chosen = embedded_documents[::13][:40]
    structures = [Structure.from_dict(document["structure"]) for document in chosen]
    return structures, np.array([int("Cu" in document["chemsys"].split("-")) for document in chosen])


@pytest.fixture(scope="module")
def config():
    """Settings of any run: the target is another one."""
    return build(
        {
            "targets": [{"name": "bulk_modulus", "unit": "GPa"}],
            "model": {"width": 4, "depth": 1, "gaussians": 6, "head_width": 4},
            "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
            "pu": {"val": 0.2, "ratio": 0.8},
        }
    )


@pytest.fixture(scope="module")
def fitted(crystals, config):
    return PUBagging(config, bags=3, side_by_side="serial", random_state=1).fit(*crystals)


def test_learned_attributes(fitted, crystals):
    structures, y = crystals
    assert fitted.n_bags_ == 3
    assert fitted.classes_.tolist() == [0, 1]
    assert len(fitted.clscore_) == len(structures)
    by_id = {f"crystal-{place}": score for place, score in enumerate(fitted.clscore_)}
    for table in (fitted.scores_, fitted.heldout_):
        for name, score in zip(table.ids, table.clscore, strict=True):
            assert score == pytest.approx(by_id.pop(name), nan_ok=True)
    assert {y[int(name.split("-")[1])] for name in by_id} == {1}  # left are training positives, which have no score
    assert np.isnan(list(by_id.values())).all()
    assert len(by_id) == round(0.8 * y.sum())


def test_scores_of_new_crystals_are_the_mean_of_all_bags(fitted, crystals):
    structures = crystals[0][:5]
    single = [
        Predictor([member], fitted.predictor_.info, "cpu").predict(structures)["synthesizable"]
        for member in fitted.predictor_.members
    ]
    np.testing.assert_allclose(fitted.score_samples(structures), np.mean(single, axis=0), rtol=1e-12)
    table = Tables(fitted.predictor_)(fitted.predictor_.predict(structures))
    np.testing.assert_allclose(table["clscore_std"], np.std(single, axis=0, ddof=1), rtol=1e-9)
    assert table["votes"].tolist() == [3] * 5
    probabilities = fitted.predict_proba(structures)
    assert probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(fitted.predict(structures), fitted.score_samples(structures) >= 0.5)


def test_lee_liu_score(fitted, crystals, monkeypatch):
    said = np.array([1, 1, 0, 0, 1])
    monkeypatch.setattr(PUBagging, "predict", lambda self, X: said)
    assert fitted.score(crystals[0][:5], [1, 0, 1, 0, 0]) == pytest.approx(0.5**2 / 0.6)
    assert fitted.score(crystals[0][:5], [1, 0, 1, 0, 0], [2, 1, 1, 1, 1]) == pytest.approx((2 / 3) ** 2 / (4 / 6))


def test_a_clone_learns_the_same(fitted, crystals, config):
    twin = clone(fitted)
    assert not hasattr(twin, "predictor_")
    assert twin.get_params() == fitted.get_params()
    np.testing.assert_array_equal(twin.fit(*crystals).clscore_, fitted.clscore_)
    other = clone(fitted).set_params(random_state=2, bags=2).fit(*crystals)
    assert other.n_bags_ == 2
    assert not np.array_equal(other.clscore_, fitted.clscore_, equal_nan=True)


def test_a_folder_is_kept_and_a_file_is_read(config, crystals, fitted, tmp_path):
    kept = PUBagging(config, bags=3, side_by_side="serial", random_state=1, folder=tmp_path / "run").fit(*crystals)
    np.testing.assert_array_equal(kept.clscore_, fitted.clscore_)
    assert (tmp_path / "run" / "scores.csv").is_file()
    named = build(config.model_dump(mode="json"), ["pu.column=is_positive", f"data.cache={tmp_path}"])
    again = PUBagging(named, bags=3, side_by_side="serial", random_state=1).fit(tmp_path / "run.jsonl")
    np.testing.assert_array_equal(again.scores_.clscore, fitted.scores_.clscore)
    assert len(again.clscore_) == 0
    assert len(again.score_samples(tmp_path / "run.jsonl")) == len(crystals[0])


def test_crystals_that_can_not_be_used(config, crystals):
    structures, y = crystals
    on_one_spot = Structure(np.eye(3) * 4, ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0.001]])
    bagging = PUBagging(config, bags=2, side_by_side="serial").fit([on_one_spot, *structures], [1, *y])
    assert [aside.material_id for aside in bagging.set_aside_] == ["crystal-0"]
    assert np.isnan(bagging.clscore_[0])
    with pytest.warns(UserWarning, match="1 crystals can't be used"):
        scores = bagging.score_samples([structures[0], on_one_spot, structures[1]])
    assert np.isnan(scores).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, r"y: give 1 \(positive\) or 0 \(unlabelled\)"),
        ([1, 0], "y: 2 labels for 40 crystals"),
        ([2] + [0] * 39, r"y: expected 1 \(positive\) and 0 or -1.*y\[0\] is 2"),
        ([0] * 40, "all 40 crystals are unlabelled"),
    ],
)
def test_bad_labels(config, crystals, y, message):
    with pytest.raises(DataError, match=message):
        PUBagging(config, bags=2).fit(crystals[0], y)


def test_odd_calls(config, crystals, trained, tmp_path):
    with pytest.raises(NotFittedError, match="call fit before"):
        PUBagging().predict(crystals[0])
    with pytest.raises(DataError, match="the labels of a file stand in a column"):
        PUBagging(config).fit(tmp_path / "x.json", [1, 0])
    with pytest.raises(ConfigError, match="unknown way of learning 'bag'; did you mean"):
        PUBagging(config, way="bag").fit(*crystals)
    with pytest.raises(ConfigError, match="the model is none of positive and unlabelled crystals"):
        Tables(Predictor.load(trained, "cpu"))
