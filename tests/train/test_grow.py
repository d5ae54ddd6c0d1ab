"""Heads of boosted trees: grown in one go, stored, and used as any network."""

import json

import numpy as np
import pytest
from ase.build import bulk

from cgnn.config import build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.model import CrystalGNN
from cgnn.model.descriptors import Volume
from cgnn.predict import Predictor
from cgnn.predict.explain import explain
from cgnn.train import train
from cgnn.train.checkpoint import load_model
from cgnn.train.ensembles.ensemble import Ensemble, train_ensemble
from cgnn.train.pu import PURun, pu_fit
from cgnn.train.ways.semi import mean_teacher

TREES = {"head": "trees", "trees": 60, "leaves": 6, "depth": 0, "descriptors": ["element_statistics", "volume"]}


def settings(given, **sections):
    values = json.loads(json.dumps(given))
    for section, entries in {"model": TREES, **sections}.items():
        values[section] = {**values.get(section, {}), **entries}
    return build(values)


@pytest.fixture(scope="module")
def more(small_settings, embedded_documents, tmp_path_factory):
    """Settings with more crystals: a leaf has ten at least."""
    path = tmp_path_factory.mktemp("more") / "export.json"
    path.write_text(json.dumps(embedded_documents[::3]))
    return {**small_settings, "data": {**small_settings["data"], "path": str(path)}}


@pytest.fixture(scope="module")
def grown(more, tmp_path_factory):
    return train(settings(more), tmp_path_factory.mktemp("grown") / "run")


def test_one_row_of_history_and_better_than_the_mean(grown):
    assert [row["epoch"] for row in grown.history] == [1]
    assert grown.history[0]["train_loss"] < 0.6
    for scores in grown.metrics["val"].values():
        assert scores["mae"] < scores["baseline_mae"]


def test_the_stored_model_predicts_what_the_run_wrote(grown, more):
    found = Predictor.load(grown.folder, "cpu").predict(more["data"]["path"])
    with open(grown.folder / "predictions.csv") as file:
        header, *rows = (line.rstrip("\n").split(",") for line in file)
    place = header.index("bulk_modulus")
    written = {row[header.index("material_id")]: float(row[place]) for row in rows}
    predicted = dict(zip(found.ids, found.columns["bulk_modulus"], strict=True))
    assert written
    for name, value in written.items():
        assert predicted[name] == pytest.approx(value, rel=1e-5)


def test_the_same_seed_grows_the_same_trees_and_resuming_leaves_them(grown, more, tmp_path):
    again = train(settings(more), tmp_path / "run")
    files = [run.folder / "best" / "model.safetensors" for run in (grown, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    train(settings(more), tmp_path / "run", resume=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.trees was 60, is 30"):
        train(settings(more, model={**TREES, "trees": 30}), tmp_path / "run", resume=True)


@pytest.mark.parametrize("by", ["seed", "bootstrap"])
def test_members_differ(more, tmp_path, by):
    run = train_ensemble(settings(more), tmp_path / "run", Ensemble(2, by, "serial"))
    one, other = load_model(run.model_file).members
    assert not np.array_equal(one.head("bulk_modulus").net.value, other.head("bulk_modulus").net.value)
    if by == "bootstrap":
        counts = [member.head("bulk_modulus").net.base.item() for member in (one, other)]
        assert counts[0] != counts[1]  # medians of different draws


def test_trees_over_the_features_of_a_trained_network(trained, more, tmp_path):
    values = {**TREES, "depth": 2}
    run = train(settings(more, model=values, transfer={"init_from": str(trained)}), tmp_path / "run")
    (ours,), (source,) = load_model(run.model_file).members, load_model(trained / "best" / "model.safetensors").members
    for name, tensor in source.convs.state_dict().items():
        assert np.array_equal(ours.convs.state_dict()[name], tensor), name
    used = ours.head("bulk_modulus").net.feature
    assert used.max() < 8 + ours.descriptors.outputs  # pooled features, and descriptors beside them
    assert (used >= 8).any()


def test_bags_of_trees(pu_settings_small, tmp_path):
    with pytest.warns(UserWarning, match="were drawn by all"):
        pu_fit(pu_settings_small, tmp_path / "run", side_by_side="serial")
    run = PURun.load(tmp_path / "run")
    assert len(load_model(run.model_file).members) == 2
    assert np.isfinite(run.heldout.clscore).all()
    fresh = Predictor.load(run.folder / "best", "cpu").predict(pu_settings_small.data.path)  # makes descriptors anew
    predicted = dict(zip(fresh.ids, fresh.columns["made"], strict=True))
    np.testing.assert_allclose([predicted[name] for name in run.heldout.ids], run.heldout.clscore, atol=1e-6)
    assert np.nanmin(run.scores.clscore) < np.nanmax(run.scores.clscore)


def test_a_run_that_cannot_begin_leaves_nothing(pu_settings_small, tmp_path):
    pu = pu_settings_small.pu.model_copy(update={"ratio": 100.0})
    with pytest.raises(DataError):
        pu_fit(pu_settings_small.model_copy(update={"pu": pu}), tmp_path / "run", side_by_side="serial")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_descriptors_are_made_once_for_all_bags(pu_settings_small, tmp_path, monkeypatch):
    made = []
    forward = Volume.forward
    monkeypatch.setattr(
        Volume, "forward", lambda self, graph: made.extend(graph.z[graph.ptr[:-1]]) or forward(self, graph)
    )
    with pytest.warns(UserWarning, match="were drawn by all"):
        run = pu_fit(pu_settings_small, tmp_path / "run", side_by_side="serial")
    assert len(made) == 60
    with pytest.warns(UserWarning, match="were drawn by all"):
        alone = pu_fit(pu_settings_small, tmp_path / "alone", side_by_side="processes", workers=2)
    assert alone.scores.clscore.tolist() == pytest.approx(run.scores.clscore.tolist(), nan_ok=True, abs=0)
    assert (tmp_path / "alone" / "descriptors.safetensors").exists()


def test_members_over_descriptors_alone_share_their_features(more, tmp_path, monkeypatch):
    run = train_ensemble(settings(more), tmp_path / "run", Ensemble(2, side_by_side="serial"))
    predictor = Predictor.load(run.folder, "cpu")
    calls = []
    seen = CrystalGNN.features
    monkeypatch.setattr(CrystalGNN, "features", lambda self, graph: calls.append(self) or seen(self, graph))
    found = predictor.predict([bulk("Cu"), bulk("Al")])
    assert len(calls) == 1
    single = [Predictor.load(run.folder / "members" / name, "cpu").predict([bulk("Cu"), bulk("Al")]) for name in "01"]
    logs = np.mean([np.log10(one.columns["bulk_modulus"]) for one in single], axis=0)
    np.testing.assert_allclose(np.log10(found.columns["bulk_modulus"]), logs, atol=1e-6)


@pytest.fixture
def pu_settings_small(small_settings, embedded_documents, tmp_path):
    path = tmp_path / "export.json"
    chosen = embedded_documents[::13][:60]
    path.write_text(json.dumps([{**d, "theoretical": "Cu" not in d["chemsys"].split("-")} for d in chosen]))
    values = {**small_settings, "targets": [{"name": "made", "task": "binary"}], "pu": {"bags": 2, "val": 0.2}}
    return settings(values, data={"path": str(path), "split": {}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {**TREES, "spread": True}}, "not with model.spread"),
        ({"model": {**TREES, "depth": 2}}, "set transfer.init_from"),
        ({"model": {**TREES, "descriptors": []}}, "needs model.descriptors"),
        ({"model": {**TREES, "head": "bushes"}}, "unknown head 'bushes'"),
        ({"train": {"loss": "huber"}}, "not with train.loss huber"),
        ({"train": {"compile": True}}, "not with train.compile"),
    ],
)
def test_what_trees_cannot_do(small_settings, tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        train(settings(small_settings, **sections), tmp_path / "run")


def test_not_for_ways_that_learn_in_steps(more, tmp_path):
    config = settings(more)
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    parts = {"train": np.arange(60), "val": np.arange(60, 80)}
    with pytest.raises(ConfigError, match=r"not with a way of learning in steps \(Consistency\)"):
        mean_teacher(config, dataset, parts, np.arange(80, 120), tmp_path / "run")


def test_not_for_nnpu(pu_settings_small, tmp_path):
    values = pu_settings_small.model_dump(mode="json")
    values["pu"] |= {"way": "nnpu", "prior": 0.2}
    with pytest.raises(ConfigError, match="not with model"):
        pu_fit(build(values), tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.*has the same value for all crystals:UserWarning")
def test_equal_labels(small_settings, tmp_path, embedded_documents):
    path = tmp_path / "export.json"
    targets = [{"name": "modulus", "column": "bulk_modulus.vrh"}, {"name": "made", "task": "binary"}]
    same = [{**d, "bulk_modulus": {"vrh": 50.0}, "made": True} for d in embedded_documents[:20]]
    path.write_text(json.dumps(same))
    run = train(settings({**small_settings, "targets": targets[:1]}, data={"path": str(path)}), tmp_path / "one")
    assert run.metrics["val"]["modulus"]["mae"] == pytest.approx(0, abs=1e-4)
    with pytest.raises(DataError, match="'made': trees need labels of both classes"):
        train(settings({**small_settings, "targets": targets}, data={"path": str(path)}), tmp_path / "both")


def test_explaining_them_is_refused(grown):
    with pytest.raises(ConfigError, match="boosted trees"):
        explain(Predictor.load(grown.folder, "cpu"), bulk("Cu"), "bulk_modulus")
