"""Finished runs put together predict their mean, and nothing that does not belong together is."""

import csv
import json

import numpy as np
import orjson
import pytest

from cgnn.config import build
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.predict import Predictor
from cgnn.train import Ensemble, Run, train, train_ensemble
from cgnn.train.checkpoint import load_model
from cgnn.train.ensembles.combine import combine

OTHER = ["model.depth=2", "model.width=6", "model.remedy=layer_scale", "train.seed=1"]


@pytest.fixture(scope="module")
def one(settings, tmp_path_factory):
    return train(build(settings), tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def other(settings, tmp_path_factory):
    """A run of another form."""
    return train(build(settings, OTHER), tmp_path_factory.mktemp("other") / "run")


@pytest.fixture(scope="module")
def both(one, other, tmp_path_factory):
    return combine([one.folder, other.folder], tmp_path_factory.mktemp("both") / "run")


def column(folder, name):
    rows = csv.DictReader((folder / "predictions.csv").read_text().splitlines())
    return np.array([float(row[name]) for row in rows])


def test_mean_on_the_learned_scale(one, other, both):
    for name in ("bulk_modulus", "shear_modulus"):
        apart = [np.log10(column(run.folder, name)) for run in (one, other)]
        np.testing.assert_allclose(np.log10(column(both.folder, name)), np.mean(apart, axis=0), atol=1e-6)
        assert np.ptp(apart, axis=0).max() > 1e-3
        np.testing.assert_allclose(column(both.folder, f"{name}_spread"), np.std(apart, axis=0, ddof=1), atol=1e-6)


def test_result_is_a_run_like_any_other(settings, one, other, both):
    assert (both.split, both.set_aside) == (one.split, one.set_aside)
    assert Run.load(both.folder).config == both.config
    assert json.loads((both.folder / "metrics.json").read_text()) == both.metrics
    assert json.loads((both.folder / "ensemble.json").read_text()) == {"runs": [str(one.folder), str(other.folder)]}
    info = load_model(both.model_file).info
    assert (info.summary["by"], len(info.summary["epochs"])) == ("run", 2)
    assert [info.config.of_member(m).model for m in (0, 1)] == [run.config.model for run in (one, other)]
    found = Predictor.load(both.folder).predict(settings["data"]["path"])
    kept = [found.ids.index(name) for name in both.split.val + both.split.test]
    np.testing.assert_allclose(found["bulk_modulus"][kept], column(both.folder, "bulk_modulus"), rtol=1e-5)


def test_intervals_are_those_of_the_mean(settings, embedded_documents, tmp_path):
    """90 % of the validation labels lie in them, as far as a rank can be."""
    (tmp_path / "export.json").write_bytes(orjson.dumps(embedded_documents[::4][:120]))
    crystals = [f"data.path={tmp_path / 'export.json'}", "train.epochs=1", "data.split.val=0.4"]
    runs = [train(build(settings, [*crystals, f"train.seed={n}"]), tmp_path / str(n)) for n in (0, 1)]
    both = combine([run.folder for run in runs], tmp_path / "both").folder
    lower, upper, true = (column(both, f"bulk_modulus_{end}") for end in ("lower", "upper", "true"))
    is_val = np.arange(len(true)) < len(runs[0].split.val)
    inside = ((lower <= true) & (true <= upper))[is_val].mean()
    assert 0.9 <= inside <= 0.9 + 2 / is_val.sum()
    assert np.abs(lower - column(runs[0].folder, "bulk_modulus_lower")).max() > 0.01


def test_ensembles_bring_all_their_members(settings, one, tmp_path):
    train_ensemble(build(settings), tmp_path / "three", Ensemble(3, "bootstrap", "serial"))
    run = combine([tmp_path / "three", one.folder], tmp_path / "four")
    members, info = load_model(run.model_file)
    assert (len(members), len(info.summary["epochs"])) == (4, 4)
    apart = [np.log10(column(folder, "bulk_modulus")) for folder in (tmp_path / "three", one.folder)]
    expected = (3 * apart[0] + apart[1]) / 4
    np.testing.assert_allclose(np.log10(column(run.folder, "bulk_modulus")), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.split.seed=1", r"data\.split\.seed is 0 and 1"),
        ("graph.k=8", r"graph\.k is 12 and 8"),
        ("targets.0.transform=log", "transform is 'log10' and 'log'"),
    ],
)
def test_runs_that_learned_other_things(settings, one, tmp_path, change, message):
    train(build(settings, [change, "train.epochs=1"]), tmp_path / "changed")
    with pytest.raises(ConfigError, match=message):
        combine([one.folder, tmp_path / "changed"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_crystals_in_the_same_file(settings, one, other, tmp_path):
    """The data changed after the runs: what they were trained on is not known any more."""
    copies = []
    for run in (one, other):
        copies.append(tmp_path / str(len(copies)))
        copies[-1].mkdir()
        for path in run.folder.rglob("*"):
            if path.is_file():
                (copies[-1] / path.relative_to(run.folder)).parent.mkdir(parents=True, exist_ok=True)
                (copies[-1] / path.relative_to(run.folder)).write_bytes(path.read_bytes())
        stored = json.loads((copies[-1] / "split.json").read_text())
        stored["train"].append(stored["val"].pop())
        (copies[-1] / "split.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match="the data have changed"):
        combine(copies, tmp_path / "run")
    with pytest.raises(ConfigError, match="divided otherwise"):
        combine([one.folder, copies[1]], tmp_path / "run")


def test_a_run_counts_once(one, tmp_path):
    for runs in ([], [one.folder], [one.folder, one.folder / ".." / one.folder.name]):
        with pytest.raises(ConfigError, match="expected two or more, each of them once"):
            combine(runs, tmp_path / "run")


def test_unfinished_runs(settings, one, tmp_path):
    def stopped(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(build(settings, ["train.seed=5"]), tmp_path / "begun", report=stopped)
    with pytest.raises(CheckpointError, match="has not finished; go on with it by --resume"):
        combine([one.folder, tmp_path / "begun"], tmp_path / "run")
    with pytest.raises(CheckpointError, match="no run"):
        combine([one.folder, tmp_path / "nothing"], tmp_path / "run")


def test_nothing_is_overwritten(one, other, both):
    with pytest.raises(ConfigError, match="is not empty"):
        combine([one.folder, other.folder], both.folder)


def test_there_is_nothing_to_resume(both):
    with pytest.raises(CheckpointError, match="put together of finished runs"):
        train_ensemble(both.config, both.folder, resume=True)
    with pytest.raises(ConfigError, match="holds an ensemble"):
        train(both.config, both.folder, resume=True)
