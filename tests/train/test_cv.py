import json

import numpy as np
import pytest

from cgnn.config import build
from cgnn.errors import CheckpointError, ConfigError
from cgnn.train import cross_validate, cv
from cgnn.train.run import Run


@pytest.fixture(scope="module")
def settings(small_settings):
    values = json.loads(json.dumps(small_settings))
    values["train"]["epochs"] = 1
    values["data"]["split"] = {"val": 0.1, "seed": 3}
    return build(values)


@pytest.fixture(scope="module")
def folder(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cv") / "cv"
    cross_validate(settings, folder, folds=3)
    return folder


def test_every_crystal_is_tested_once(folder):
    runs = [Run.load(folder / f"fold-{fold}") for fold in range(3)]
    tested = [name for run in runs for name in run.split.test]
    assert len(tested) == len(set(tested)) == 40
    for run in runs:
        assert not set(run.split.test) & {*run.split.train, *run.split.val}
        assert run.split.val
        assert run.config.data.split.method == "kfold"


def test_mean_and_spread(folder):
    summary = json.loads((folder / "cv.json").read_text())
    runs = [Run.load(folder / f"fold-{fold}") for fold in range(3)]
    assert set(summary) == {"bulk_modulus", "shear_modulus"}
    for name, scores in summary.items():
        assert {"mae", "rmse", "r2", "mae_log10", "baseline_mae"} <= set(scores)
        for key, found in scores.items():
            values = [run.metrics["test"][name][key] for run in runs]
            assert found["folds"] == values
            assert found["mean"] == pytest.approx(np.mean(values))
            assert found["std"] == pytest.approx(np.std(values, ddof=1))


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resume_keeps_finished_folds(folder, settings, monkeypatch):
    before = files(folder)
    with monkeypatch.context() as patch:
        patch.setattr(cv, "train", None)  # would fail if a fold were trained again
        cross_validate(settings, folder, folds=3, resume=True)
    assert files(folder) == before


def test_resume_after_a_kill(folder, settings, tmp_path, monkeypatch):
    """Killed in the first epoch of the second fold, from which nothing but its settings is left."""

    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    real = cv.train

    def train(config, place, *rest):
        if place.name == "fold-1":
            monkeypatch.setattr("cgnn.train.loop._Session._step", killed)
        return real(config, place, *rest)

    monkeypatch.setattr(cv, "train", train)
    with pytest.raises(Killed):
        cross_validate(settings, tmp_path / "cv", folds=3)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="fold-1: holds no training state yet"):
        cross_validate(settings, tmp_path / "cv", folds=3, resume=True)
    assert (tmp_path / "cv" / "cv.json").read_bytes() == (folder / "cv.json").read_bytes()


def test_other_settings_are_refused(folder, settings):
    other = build(settings.model_dump(mode="json"), ["model.width=9"])
    with pytest.raises(CheckpointError, match="fold-0: was made with other settings"):
        cross_validate(other, folder, folds=3, resume=True)
    with pytest.raises(ConfigError, match="fold-0: is not empty"):
        cross_validate(settings, folder, folds=3)


def test_report_is_told_the_fold(settings, tmp_path):
    rows = []
    cross_validate(settings, tmp_path, folds=2, report=lambda fold: lambda row: rows.append((fold, row["epoch"])))
    assert rows == [(0, 1), (1, 1)]
