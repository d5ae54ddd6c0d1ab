"""Heads that are fitted in one go, boosted trees and kernel ridge regression: stored and used as any network."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk
from crystals import crystal as read
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from cgnn.cli.report import describe
from cgnn.config import ModelConfig, build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.graph.build import crystal_arrays
from cgnn.graph.crystal import Crystal
from cgnn.model import CrystalGNN
from cgnn.model.descriptors import Volume
from cgnn.model.heads import crystal_width
from cgnn.predict import Predictor
from cgnn.predict.explain import explain
from cgnn.predict.probing import PERTURBATIONS, Values
from cgnn.predict.probing.probe import roughness
from cgnn.train import train
from cgnn.train.checkpoint import load_model
from cgnn.train.ensembles.ensemble import Ensemble, train_ensemble
from cgnn.train.pu import PURun, pu_fit
from cgnn.train.trust.assess import combined_part, features_part
from cgnn.train.ways.semi import mean_teacher

PLACES = np.linspace(0, 0.1, 101)
"""Amplitudes, Å."""
KERNEL = {"head": "kernel_ridge", "depth": 0, "descriptors": ["element_statistics", "volume"]}
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
    with pytest.raises(DataError, match=r"'made': model\.head trees needs labels of both classes"):
        train(settings({**small_settings, "targets": targets}, data={"path": str(path)}), tmp_path / "both")


def test_explaining_them_is_refused(grown):
    with pytest.raises(ConfigError, match="trees or kernels over descriptors"):
        explain(Predictor.load(grown.folder, "cpu"), bulk("Cu"), "bulk_modulus")


def test_of_an_ensemble_the_networks_are_explained(more, tmp_path):
    config = settings(more, model={**more["model"], "head": "layers"}, ensemble={"models": [KERNEL, {}]})
    run = train_ensemble(config, tmp_path / "run", Ensemble(2, side_by_side="serial"))
    found, alone = (
        explain(Predictor.load(folder, "cpu"), bulk("Cu"), "bulk_modulus")[0]
        for folder in (run.folder, run.folder / "members" / "1")
    )
    np.testing.assert_allclose(found.atoms.parts, alone.atoms.parts, rtol=1e-6)
    assert np.abs(found.atoms.parts).min() > 0


def crystals_of(run):
    dataset = CrystalDataset(prepare(run.config.data, run.config.graph), run.config.targets)
    return dataset, {name: dataset.indices(getattr(run.split, name)) for name in ("train", "val")}


@pytest.fixture(scope="module")
def solved(more, tmp_path_factory):
    return train(settings(more, model=KERNEL, train={"loss": "mse"}), tmp_path_factory.mktemp("solved") / "run")


def test_squared_errors_give_the_mean_of_a_gaussian_process(solved):
    (model,), _ = load_model(solved.model_file)
    dataset, parts = crystals_of(solved)
    target = solved.config.targets[0]
    net = model.head(target.name).net
    process = GaussianProcessRegressor(Matern(float(net.length), nu=1.5), alpha=ModelConfig().ridge, optimizer=None)
    x = {name: net._scaled(torch.from_numpy(features_part(model, dataset, part))) for name, part in parts.items()}
    labels = target.to_learned(dataset.label(target, parts["train"]))
    process.fit(x["train"].double(), (labels - labels.mean()) / labels.std())
    expected = labels.mean() + labels.std() * process.predict(x["val"].double())
    found = combined_part([model], dataset, parts["val"]).learned[target.name].value
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert solved.metrics["val"][target.name]["mae"] < 0.3 * solved.metrics["val"][target.name]["baseline_mae"]


def test_absolute_errors_let_go_of_a_wrong_label(more, tmp_path, embedded_documents):
    documents = json.loads(json.dumps(embedded_documents[::3]))
    errors = {}
    for number, document in enumerate(documents):
        document["bulk_modulus"]["vrh"] *= 8.0 if number % 20 == 0 else 1.0
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(documents))
    true = {d["material_id"]: d["bulk_modulus"]["vrh"] for d in embedded_documents}
    for loss in ("mse", "mae"):
        run = train(settings(more, model=KERNEL, train={"loss": loss}, data={"path": str(path)}), tmp_path / loss)
        found = Predictor.load(run.folder, "cpu").predict(str(path))
        logs = [np.log10(k / true[i]) for i, k in zip(found.ids, found.columns["bulk_modulus"], strict=True)]
        errors[loss] = np.abs(logs).mean()
    assert errors["mae"] < 0.7 * errors["mse"]


def test_a_kernel_has_no_jumps_where_trees_have(more, tmp_path, embedded_documents):
    seen = ["volume", "environments", "arrangements"]
    crystals = [Crystal(*crystal_arrays(read(d))) for d in embedded_documents if 3 <= d["nsites"] <= 6][::40][:4]
    jumps = {}
    for head in (KERNEL, TREES):
        run = train(settings(more, model={**head, "descriptors": seen}), tmp_path / head["head"])
        values = Values(load_model(run.model_file).members, run.config.graph)
        found = [
            roughness(values, PERTURBATIONS[path](crystal, run.config.graph, np.random.default_rng(0)), PLACES)
            for crystal in crystals
            for path in ("moved", "strained")
        ]
        jumps[head["head"]] = [each.share for paths in found for each in paths.values()]
    assert max(jumps["kernel_ridge"]) < 1e-3
    assert max(jumps["trees"]) > 0.9


@pytest.mark.parametrize("changes", [{"compile": True}, {"precision": "64-true"}])
def test_settings_of_steps_change_nothing(solved, more, tmp_path, changes):
    run = train(settings(more, model=KERNEL, train={"loss": "mse", **changes}), tmp_path / "run")
    found = run.metrics["val"]["bulk_modulus"]["mae"]
    assert found == pytest.approx(solved.metrics["val"]["bulk_modulus"]["mae"], rel=1e-4)


def test_what_is_dropped_is_drawn_by_the_member(more, tmp_path):
    kernel = {**KERNEL, "dropout": 0.3}
    run = train_ensemble(settings(more, model=kernel), tmp_path / "run", Ensemble(2, side_by_side="serial"))
    nets = [member.head("bulk_modulus").net for member in load_model(run.model_file).members]
    assert not torch.equal(nets[0].factor, nets[1].factor)
    dropped = [float((net.factor[net.known.std(dim=0) == 0] == 0).sum()) / len(net.factor) for net in nets]
    assert all(0.15 < share < 0.6 for share in dropped)
    again = train_ensemble(settings(more, model=kernel), tmp_path / "again", Ensemble(2, side_by_side="serial"))
    assert again.model_file.read_bytes() == run.model_file.read_bytes()


def test_a_solved_one_is_stored_and_resumed(solved, more, tmp_path):
    found = Predictor.load(solved.folder, "cpu").predict(more["data"]["path"])
    written = pd.read_csv(solved.folder / "predictions.csv", index_col="material_id")["shear_modulus"]
    predicted = pd.Series(found.columns["shear_modulus"], found.ids)
    np.testing.assert_allclose(predicted[written.index], written, rtol=1e-5)
    before = solved.model_file.read_bytes()
    assert train(solved.config, solved.folder, resume=True).model_file.read_bytes() == before
    assert "kernel ridge regression (length 1.5, ridge 0.001) over element_statistics, volume" in describe(
        Predictor.load(solved.folder)
    )


def test_a_kernel_among_networks_by_bootstrap(more, tmp_path):
    """It is a member as any, solved for the crystals that were drawn, each as often as it was."""
    config = settings(more, model={**more["model"], "head": "layers"}, ensemble={"models": [{}, KERNEL]})
    run = train_ensemble(config, tmp_path / "run", Ensemble(2, "bootstrap", "serial"))
    counts = json.loads((run.folder / "members" / "1" / "bootstrap.json").read_text())
    network, kernel = load_model(run.model_file).members
    assert (network.config.head, kernel.config.head) == ("layers", "kernel_ridge")
    assert len(kernel.head("bulk_modulus").net.known) == len(counts) < len(run.split.train)
    alone = [Predictor.load(run.folder / "members" / name, "cpu").predict([bulk("Cu"), bulk("Al")]) for name in "01"]
    mean = np.mean([np.log10(one.columns["bulk_modulus"]) for one in alone], axis=0)
    together = Predictor.load(run.folder, "cpu").predict([bulk("Cu"), bulk("Al")])
    np.testing.assert_allclose(np.log10(together.columns["bulk_modulus"]), mean, atol=1e-6)


@pytest.mark.parametrize("model", [KERNEL, {**KERNEL, "descriptors": []}, TREES])
def test_with_hints_they_see_what_the_heads_of_the_source_see(trained, more, tmp_path, model):
    transfer = {"init_from": str(trained), "hints": True, "take": []}
    run = train(settings(more, model=model, transfer=transfer), tmp_path / "run")
    (ours,), (source,) = load_model(run.model_file).members, load_model(trained / "best" / "model.safetensors").members
    dataset, parts = crystals_of(run)
    seen = features_part(ours, dataset, parts["val"])
    expected = features_part(source, dataset, parts["val"])
    np.testing.assert_allclose(seen[:, : expected.shape[1]], expected, rtol=1e-5, atol=1e-6)
    beside = ours.descriptors.outputs if ours.descriptors else 0
    assert seen.shape[1] == expected.shape[1] + beside == crystal_width(ours.config)
    assert "inside it" in describe(Predictor.load(run.folder))


def test_what_a_kernel_cannot_do(pu_settings_small, more, tmp_path):
    values = pu_settings_small.model_dump(mode="json")
    values["model"] |= KERNEL
    with pytest.raises(ConfigError, match=r"model\.head kernel_ridge: not with targets of two classes"):
        pu_fit(build(values), tmp_path / "bags", side_by_side="serial")
    with pytest.raises(ConfigError, match=r"model\.head kernel_ridge: needs model\.descriptors"):
        train(settings(more, model={**KERNEL, "descriptors": []}), tmp_path / "nothing")


def test_of_many_crystals_a_kernel_takes_a_draw(more, tmp_path, monkeypatch):
    monkeypatch.setattr("cgnn.train.at_once.MOST", 50)
    with pytest.warns(UserWarning, match="takes 50 of"):
        run = train(settings(more, model=KERNEL), tmp_path / "run")
    (model,), _ = load_model(run.model_file)
    assert len(model.head("shear_modulus").net.known) == 50
    assert run.metrics["val"]["shear_modulus"]["mae"] < run.metrics["val"]["shear_modulus"]["baseline_mae"]
