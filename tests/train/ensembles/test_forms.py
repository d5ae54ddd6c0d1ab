"""Ensembles whose members are networks of several forms."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from cgnn.cli.report import describe
from cgnn.config import build
from cgnn.errors import CheckpointError, ConfigError, Stopped
from cgnn.predict import Predictor
from cgnn.predict.embedding import embed
from cgnn.predict.forward import Network
from cgnn.train import Ensemble, train, train_ensemble
from cgnn.train.checkpoint import MODEL_FILE, load_model
from cgnn.train.ensembles import batched, ensemble

FORMS = [{}, {"depth": 2, "width": 6, "remedy": "layer_scale", "elements": ["properties"]}]


@pytest.fixture(scope="module")
def config(settings):
    training = {**settings["train"], "precision": "64-true", "learning_rate": 0.01}
    return build({**settings, "train": training, "ensemble": {"models": FORMS}})


@pytest.fixture(scope="module")
def serial(config, tmp_path_factory):
    """The folder of three members: two of the first form, one of the second; not to be changed."""
    folder = tmp_path_factory.mktemp("forms") / "run"
    train_ensemble(config, folder, Ensemble(3, "seed", "serial"))
    return folder


def weights(folder, member):
    return load_model(folder / "members" / str(member) / "best" / MODEL_FILE).members[0].state_dict()


def assert_equal(found, expected):
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_members_have_their_forms_in_turn(config, serial):
    members, info = load_model(serial / "best" / MODEL_FILE)
    assert [(m.config.depth, m.config.width, m.config.remedy) for m in members] == [
        (1, 4, "none"), (2, 6, "layer_scale"), (1, 4, "none")
    ]  # fmt: skip
    assert info.config == config
    second = load_model(serial / "members" / "1" / "best" / MODEL_FILE).info.config
    assert second.model == config.of_member(1).model
    assert second.ensemble is None


def test_a_member_is_what_it_would_be_among_its_like(settings, config, serial, tmp_path):
    """The second member is the second one of an ensemble in which all have its form."""
    values = {**settings, "train": config.train.model_dump(), "model": {**settings["model"], **FORMS[1]}}
    train_ensemble(build(values), tmp_path / "run", Ensemble(2, "seed", "serial"))
    assert_equal(weights(serial, 1), weights(tmp_path / "run", 1))


def test_processes_give_the_same_bits(config, serial, tmp_path):
    train_ensemble(config, tmp_path / "run", Ensemble(3, "seed", "processes", 2))
    assert (tmp_path / "run" / "best" / MODEL_FILE).read_bytes() == (serial / "best" / MODEL_FILE).read_bytes()


def test_a_cluster_gives_the_same_bits(config, serial, tmp_path, monkeypatch):
    """Each worker is given its member's own settings; what travels can be pickled."""

    def run(engine, work, blocks, workers):
        for block in blocks:
            yield pickle.loads(pickle.dumps(work))(pickle.loads(pickle.dumps(block)))

    monkeypatch.setattr("cgnn.train.ensembles.on_cluster.run", run)
    train_ensemble(config, tmp_path / "run", Ensemble(3, "seed", "ray"))
    assert (tmp_path / "run" / "best" / MODEL_FILE).read_bytes() == (serial / "best" / MODEL_FILE).read_bytes()


def test_members_of_one_form_are_fitted_at_once(config, serial, tmp_path):
    folder = tmp_path / "run"
    train_ensemble(config, folder, Ensemble(3, "seed", "batched"))
    assert sorted(path.name for path in (folder / "members").iterdir()) == ["0", "1", "2", "form-0", "form-1"]
    first, second = (load_model(place / "best" / MODEL_FILE) for place in (serial, folder))
    for alone, together in zip(first.members, second.members, strict=True):
        for (name, tensor), other in zip(alone.state_dict().items(), together.state_dict().values(), strict=True):
            if not name.endswith("target.bias"):  # has no gradient but rounding
                np.testing.assert_allclose(tensor, other, rtol=1e-6, atol=1e-7, err_msg=name)
    metrics = [json.loads((place / "metrics.json").read_text())["test"]["bulk_modulus"] for place in (serial, folder)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


@pytest.mark.parametrize("form", [0, 1])
def test_stopped_in_a_form_and_resumed(config, tmp_path, monkeypatch, form):
    """A signal in the second epoch of either form; the members are then those of an undisturbed fit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_ensemble(config, whole, Ensemble(3, "seed", "batched"))
    rows = []

    def report(member):
        def note(row):
            rows.append(member)
            if member == (2 if form == 0 else 1) and rows.count(member) == 2:
                raise KeyboardInterrupt

        return note

    with pytest.raises((KeyboardInterrupt, Stopped)):
        train_ensemble(config, broken, Ensemble(3, "seed", "batched"), report=report)
    assert not (broken / "best").exists()
    train_ensemble(config, broken, Ensemble.load(broken), resume=True)
    assert (broken / "best" / MODEL_FILE).read_bytes() == (whole / "best" / MODEL_FILE).read_bytes()


def test_forms_that_can_not_be_fitted_at_once(config, monkeypatch):
    forms = config.ensemble.model_copy(update={"models": ({"remedy": "dense"}, {"remedy": "initial_residual"})})
    odd = config.model_copy(update={"ensemble": forms})
    assert batched.can_batch(config)
    assert not batched.can_batch(odd)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu = odd.model_copy(update={"train": odd.train.model_copy(update={"device": "auto"})})
    assert ensemble._resolved(Ensemble(2), on_gpu, None).side_by_side == "serial"


def test_prediction(config, serial, tmp_path, embedded_documents):
    """The mean of all forms: the same in this process, in workers, by the embedding's first member, moved elsewhere."""
    shutil.copytree(serial / "best", tmp_path / "moved")
    predictor = Predictor.load(tmp_path / "moved")
    alone = [Predictor.load(serial / "members" / str(member)) for member in range(3)]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(embedded_documents[:12]))
    log_mean = np.mean([np.log10(one.predict(str(path)).columns["bulk_modulus"]) for one in alone], axis=0)
    found = predictor.predict(str(path))
    np.testing.assert_allclose(np.log10(found.columns["bulk_modulus"]), log_mean, rtol=1e-6)
    network = Network(predictor.members, predictor.info.elements, predictor.confidence)
    twin = pickle.loads(pickle.dumps(network))
    for one, other in zip(network._members, twin._members, strict=True):
        assert one.config == other.config
        assert_equal(one.state_dict(), other.state_dict())
    assert embed(predictor, str(path)).features.shape == (12, 4)
    text = describe(predictor)
    assert "width 4, depth 1, " in text
    assert " weights or width 6, depth 2, " in text


def test_one_network_is_the_first_thing_described(config, tmp_path):
    """Without --members the settings of ``model`` count; the model file holds no ensemble."""
    run = train(config, tmp_path / "run")
    (network,), info = load_model(run.model_file)
    assert (network.config.depth, network.config.width) == (1, 4)
    assert info.config == config.alone
    assert Predictor.load(tmp_path / "run").members[0].config.depth == 1


def test_other_forms_can_not_be_resumed(settings, config, serial, tmp_path):
    shutil.copytree(serial, tmp_path / "run")
    other = config.model_copy(update={"ensemble": None})
    with pytest.raises(CheckpointError, match=r"ensemble.*can't resume|can't resume.*ensemble"):
        train_ensemble(other, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "ensemble.models"),
        ([{}, {"dept": 2}], r"ensemble\.models\.1: .*dept.*did you mean.*depth"),
        ([{"depth": -1}], r"ensemble\.models\.0: .*depth"),
        ([{"depth": "2"}], r"ensemble\.models\.0: .*depth"),
        ([{}, {"hints": None}], r"ensemble\.models\.1: hints are set by"),
        (3, "ensemble.models"),
    ],
)
def test_odd_forms_are_refused(settings, models, message):
    with pytest.raises(ConfigError, match=message):
        build({**settings, "ensemble": {"models": models}})


TREES = {"head": "trees", "depth": 0, "trees": 20, "leaves": 4, "descriptors": ["element_statistics", "volume"]}


@pytest.mark.parametrize("way", ["serial", "batched"])
def test_trees_among_networks(settings, tmp_path, way, embedded_documents):
    """Boosted trees are a member as any: a third of the mean; where the others are fitted at once, they come after."""
    model = {**settings["model"], "spread": True}
    config = build({**settings, "model": model, "ensemble": {"models": [{}, {}, {**TREES, "spread": False}]}})
    run = train_ensemble(config, tmp_path / "run", Ensemble(3, "seed", way))
    members = load_model(run.model_file).members
    assert [member.config.head for member in members] == ["layers", "layers", "trees"]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(embedded_documents[:12]))
    alone = [Predictor.load(run.folder / "members" / str(member)).predict(str(path)) for member in range(3)]
    found = Predictor.load(run.folder).predict(str(path))
    mean = np.mean([np.log10(one.columns["bulk_modulus"]) for one in alone], axis=0)
    np.testing.assert_allclose(np.log10(found.columns["bulk_modulus"]), mean, rtol=1e-6)
    within = [one.learned["bulk_modulus"]["scale_within"] for one in alone]
    assert not within[2].any()
    expected = np.sqrt(np.mean(np.square(within), axis=0))
    np.testing.assert_allclose(found.learned["bulk_modulus"]["scale_within"], expected, rtol=1e-5)
    assert " weights or 20 trees of up to 4 leaves over element_statistics, volume" in describe(
        Predictor.load(run.folder)
    )


@pytest.mark.parametrize("forms", [[TREES, {**TREES, "descriptors": ["volume"]}], [TREES, {}]])
def test_trees_first(settings, tmp_path, forms):
    """What members see is shared only where all see the same."""
    config = build({**settings, "ensemble": {"models": forms}})
    run = train_ensemble(config, tmp_path / "run", Ensemble(2, "seed", "serial"))
    alone = [Predictor.load(run.folder / "members" / str(m)).predict(settings["data"]["path"]) for m in range(2)]
    found = Predictor.load(run.folder).predict(settings["data"]["path"])
    mean = np.mean([np.log10(one.columns["shear_modulus"]) for one in alone], axis=0)
    np.testing.assert_allclose(np.log10(found.columns["shear_modulus"]), mean, rtol=1e-6)


def test_what_trees_can_not_do_is_told_before_anything_is_fitted(settings, tmp_path):
    config = build({**settings, "ensemble": {"models": [{}, {**TREES, "spread": True}]}})
    with pytest.raises(ConfigError, match=r"model\.head trees: not with model\.spread"):
        train_ensemble(config, tmp_path / "run", Ensemble(2, "seed", "serial"))
    assert not (tmp_path / "run" / "members").exists()


@pytest.mark.parametrize("hints", [False, True])
def test_transfer_from_forms_to_forms(settings, tmp_path, hints):
    """The source is the first member, whatever its form; members of any form start from it, and keep it for hints."""
    values = {**settings, "ensemble": {"models": [FORMS[1], {}]}}
    train_ensemble(build(values, ["train.epochs=1"]), tmp_path / "source", Ensemble(2, "seed", "serial"))
    transfer = {"init_from": str(tmp_path / "source"), "hints": hints, "take": ["embed", "convs"]}
    target = {**values, "model": {**settings["model"], **FORMS[1]}, "transfer": transfer}
    target["ensemble"] = {"models": [{}, {"depth": 1}]}
    run = train_ensemble(build(target, ["train.epochs=1"]), tmp_path / "run", Ensemble(2, "seed", "serial"))
    members, info = load_model(run.model_file)
    source = load_model(tmp_path / "source" / "best" / MODEL_FILE).members[0]
    assert [member.config.depth for member in members] == [2, 1]
    for number, member in enumerate(members):
        report = json.loads((run.folder / "members" / str(number) / "transfer.json").read_text())
        assert {"embed", "convs.0"} <= set(report["loaded"])
        assert (member.hints is not None) == hints
        if hints:
            assert_equal(member.hints.network.state_dict(), source.state_dict())
    assert "init_from" in info.source
