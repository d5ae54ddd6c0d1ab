"""Self-training and the mean teacher."""

import math

import numpy as np
import pytest
import torch
from train.ways.semi_settings import PARTS, UNLABELLED, crystals, model_bytes, settings

from cgnn.config import build
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.train import fit
from cgnn.train.checkpoint import read_tensors
from cgnn.train.method import Step
from cgnn.train.ways.companions import Companions, only
from cgnn.train.ways.pseudo import pseudo_labels
from cgnn.train.ways.semi import (
    Consistency,
    MeanTeacher,
    PseudoLabels,
    SelfTraining,
    _difference,
    mean_teacher,
    self_training,
)


@pytest.fixture
def config(small_settings):
    return settings(small_settings)


@pytest.fixture
def dataset(config):
    return crystals(config)


@pytest.fixture(scope="module")
def models(small_settings, tmp_path_factory):
    config = settings(small_settings)
    data = crystals(config)
    seeded = [settings(small_settings, train__seed=seed) for seed in (0, 1)]
    return [fit(each, data, PARTS, tmp_path_factory.mktemp("member")).model for each in seeded]


def step_of(config, dataset, model, indices, averaged=None, done=0.5):
    indices = np.asarray(indices)
    return Step(model, model, averaged, dataset.batch(indices), config.train, done, indices)


def test_mean_teacher_of_weight_zero_is_the_plain_way(config, dataset, tmp_path):
    fit(config, dataset, PARTS, tmp_path / "plain")
    mean_teacher(config, dataset, PARTS, UNLABELLED, tmp_path / "zero", settings=MeanTeacher(weight=0.0))
    mean_teacher(config, dataset, PARTS, UNLABELLED, tmp_path / "one")
    assert model_bytes(tmp_path / "zero") == model_bytes(tmp_path / "plain")
    assert model_bytes(tmp_path / "one") != model_bytes(tmp_path / "plain")


def test_mean_teacher_loss_by_its_formula(config, dataset, models):
    """Without noise and dropout: loss of the labels plus the ramped Huber loss between two networks."""
    student, teacher = models
    quiet = MeanTeacher(weight=3.0, ramp=0.4, noise=0.0, dropout=0.0)
    method = Consistency(config, quiet, UNLABELLED)
    step = step_of(config, dataset.hidden(UNLABELLED), student.eval(), [0, 1, 20, 21, 22], teacher, done=0.1)
    with torch.no_grad():
        found = float(method.loss(step))
        said, wanted = (model(step.batch) for model in (student, teacher))
        labelled = dataset.batch([0, 1])
        expected = float(student.loss(student(labelled), labelled, "mae"))
    difference = 0.0
    for target in config.targets:
        away = (said[target.name][:, 0] - wanted[target.name][:, 0].clamp(-3, 3)).abs()
        difference += float(torch.where(away < 1, away**2 / 2, away - 0.5).mean())
    expected += 3.0 * math.exp(-5 * (1 - 0.1 / 0.4) ** 2) * difference
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_teacher_far_away_is_not_followed(config, models):
    """Its values are cut at three standard deviations, and no crystal pulls harder than one."""
    student, _ = models
    target = config.targets[0]
    said = torch.tensor([[0.0], [50.0], [-50.0]], requires_grad=True)
    raw = {target.name: said, config.targets[1].name: torch.zeros(3, 1)}
    taught = {target.name: torch.full((3, 1), 1000.0), config.targets[1].name: torch.zeros(3, 1)}
    difference = _difference(student, raw, taught)
    assert float(difference.detach()) == pytest.approx((2.5 + 46.5 + 52.5) / 3, rel=1e-6)
    difference.backward()
    torch.testing.assert_close(said.grad, torch.tensor([[-1.0], [1.0], [-1.0]]) / 3)


def test_the_teacher_is_not_changed_by_the_loss(config, dataset, models):
    student, teacher = models
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student.train()
    loss = Consistency(config, MeanTeacher(), UNLABELLED).loss(
        step_of(config, dataset, student, [0, 20], teacher.train(), done=1.0)
    )
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    student.zero_grad()
    student.eval()


def test_pseudo_label_loss_by_its_formula(config, dataset, models):
    method = PseudoLabels(config, SelfTraining(weight=0.25), UNLABELLED, {"bulk_modulus": np.zeros(1)})
    model = models[0].eval()
    with torch.no_grad():
        found = float(method.loss(step_of(config, dataset, model, [3, 4, 25, 26, 27])))
        true, pseudo = dataset.batch([3, 4]), dataset.batch([25, 26, 27])
        expected = model.loss(model(true), true, "mae") + 0.25 * model.score(model(pseudo), pseudo, "mae")
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_companions_stand_behind_the_labelled_ones(config):
    method = Companions(config, UNLABELLED, 1.5, "test")
    drawn = method.draw(np.array([4, 2, 9]), 1, 0)
    assert drawn[:3].tolist() == [4, 2, 9]
    assert len(drawn) == 3 + 5
    assert set(drawn[3:]) <= set(UNLABELLED)
    assert drawn.tolist() == method.draw(np.array([4, 2, 9]), 1, 0).tolist()
    others = [method.draw(np.array([4, 2, 9]), *place).tolist() for place in ((1, 1), (0, 0))]
    assert drawn.tolist() not in others
    assert len(method.draw(np.arange(12), 0, 0)) == 12 + len(UNLABELLED)


def test_companions_need_a_pool_and_a_ratio(config):
    with pytest.raises(DataError, match="no unlabelled crystals to learn from"):
        Companions(config, np.array([], dtype=np.int64), 1.0, "test")
    with pytest.raises(ConfigError, match=r"ratio: expected a number above 0, got 0\.0"):
        Companions(config, UNLABELLED, 0.0, "test")


def test_only_leaves_the_labels_of_some(config, dataset):
    batch = dataset.batch([0, 1, 2])
    found = only(batch, config.targets, torch.tensor([True, False, True]))
    assert torch.isnan(found.y_bulk_modulus).tolist() == [False, True, False]
    assert not torch.isnan(batch.y_bulk_modulus).any()


def test_pseudo_labels_are_the_surest_mean_of_the_members(config, dataset, models):
    pool, labels = pseudo_labels(models, dataset.hidden(UNLABELLED), UNLABELLED, 0.5)
    with torch.no_grad():
        batch = dataset.batch(UNLABELLED)
        for target in config.targets:
            found = [model.head(target.name).learned(model(batch)[target.name]) for model in models]
            (first, second), (small, large) = ([pair[k].numpy() for pair in found] for k in (0, 1))
            doubt = np.sqrt((small**2 + large**2) / 2 + ((first - second) / 2) ** 2)
            surest = np.sort(UNLABELLED[np.argsort(doubt)[:8]])
            given = np.flatnonzero(np.isfinite(labels[target.name]))
            assert given.tolist() == surest.tolist()
            mean = 10 ** ((first + second) / 2)[np.isin(UNLABELLED, surest)]
            np.testing.assert_allclose(labels[target.name][given], mean, rtol=1e-6)
    is_given = np.any([np.isfinite(column) for column in labels.values()], axis=0)
    assert pool.tolist() == np.flatnonzero(is_given).tolist()


CLASSES = [
    {"name": "stiff", "column": "is_stiff", "task": "binary"},
    {"name": "kind", "column": "kind", "task": "multiclass", "classes": ["soft", "middle", "hard"]},
    {"name": "charge", "column": "charge", "level": "atom"},
]


@pytest.fixture
def classes(embedded_documents, small_settings, tmp_path):
    """Crystals with classes and a number per atom."""
    import orjson

    documents = []
    for document in embedded_documents[::12][:40]:
        k = document["bulk_modulus"]["vrh"]
        kind = "soft" if k < 80 else "middle" if k < 150 else "hard"
        charge = [float(site["species"][0]["element"] == "Al") for site in document["structure"]["sites"]]
        documents.append({**document, "is_stiff": k > 120, "kind": kind, "charge": charge})
    path = tmp_path / "classes.json"
    path.write_bytes(orjson.dumps(documents))
    values = settings(small_settings).model_dump(mode="json")
    values |= {"targets": CLASSES}
    values["data"]["path"] = str(path)
    return build(values)


def test_pseudo_labels_of_classes_and_atoms(classes, tmp_path):
    dataset = crystals(classes)
    model = fit(classes, dataset, PARTS, tmp_path / "run").model
    pool, labels = pseudo_labels([model], dataset.hidden(UNLABELLED), UNLABELLED, 0.25)
    with torch.no_grad():
        decoded = {name: v.numpy() for name, v in model.decode(model(dataset.batch(UNLABELLED))).items()}
    np.testing.assert_array_equal(np.isfinite(labels["stiff"])[UNLABELLED].sum(), 4)
    given = np.isfinite(labels["stiff"])[UNLABELLED]
    assert np.abs(decoded["stiff"] - 0.5)[given].min() >= np.abs(decoded["stiff"] - 0.5)[~given].max()
    np.testing.assert_array_equal(labels["stiff"][UNLABELLED][given], decoded["stiff"][given] > 0.5)
    given = np.isfinite(labels["kind"])[UNLABELLED]
    np.testing.assert_array_equal(labels["kind"][UNLABELLED][given], decoded["kind"].argmax(1)[given])
    atoms = dataset.sizes()[0]
    owner = np.repeat(np.arange(len(dataset)), atoms)
    assert np.isfinite(labels["charge"]).sum() == round(0.25 * atoms[UNLABELLED].sum())
    assert set(owner[np.isfinite(labels["charge"])]) <= set(pool)
    np.testing.assert_allclose(
        labels["charge"][np.isin(owner, UNLABELLED)][np.isfinite(labels["charge"])[np.isin(owner, UNLABELLED)]],
        decoded["charge"][np.isfinite(labels["charge"])[np.isin(owner, UNLABELLED)]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("way", [self_training, mean_teacher])
def test_classes_and_atoms_are_learned_too(way, classes, tmp_path):
    assert math.isfinite(way(classes, crystals(classes), PARTS, UNLABELLED, tmp_path / "run").history[-1]["val_score"])


def test_rounds_and_members_leave_their_folders(config, dataset, tmp_path):
    settings = SelfTraining(rounds=2, members=2, dropout=0.3, noise=0.01)
    fitted = self_training(config, dataset, PARTS, UNLABELLED, tmp_path, settings=settings)
    assert fitted.info.config.model.dropout == 0.3
    seeds = []
    for number in (0, 1):
        for member in (0, 1):
            history = tmp_path / f"round-{number}" / f"member-{member}" / "history.jsonl"
            assert len(history.read_text().splitlines()) == config.train.epochs
            _, state = read_tensors(history.parent / "last" / "state.safetensors")
            seeds.append(state["config"]["train"]["seed"])
        assert (tmp_path / f"round-{number}" / "pseudo.safetensors").is_file()
    assert seeds == [0, 1000, 0, 1000]
    assert fitted.info.summary["train"] == len(PARTS["train"])  # pseudo-labelled crystals don't count as labelled


def test_pseudo_labels_of_other_settings_are_not_taken_up(config, dataset, tmp_path):
    self_training(config, dataset, PARTS, UNLABELLED, tmp_path, settings=SelfTraining(rounds=1))
    with pytest.raises(CheckpointError, match="can't resume with pseudo-labels of other data or settings"):
        self_training(config, dataset, PARTS, UNLABELLED, tmp_path, resume=True, settings=SelfTraining(1, share=0.3))


@pytest.mark.parametrize(
    ("way", "changes", "options", "words"),
    [
        (mean_teacher, {"train__ema": 0.0}, None, "train.ema: 0, but the averaged network is the teacher"),
        (mean_teacher, {}, MeanTeacher(dropout=1.0), "mean teacher: a setting does not fit"),
        (self_training, {"model__spread": False}, None, "set model.spread=true, or take members=3"),
        (self_training, {}, SelfTraining(rounds=0), "rounds, members: expected at least 1, got 0 and 1"),
        (self_training, {}, SelfTraining(weight=1.0), "share, weight: expected above 0 and below 1"),
    ],
)
def test_settings_that_do_not_fit(small_settings, tmp_path, way, changes, options, words):
    config = settings(small_settings, **changes)
    with pytest.raises(ConfigError, match=words):
        way(config, crystals(config), PARTS, UNLABELLED, tmp_path, settings=options)
    assert not list(tmp_path.iterdir())
