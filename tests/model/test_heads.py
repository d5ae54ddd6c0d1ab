"""Heads against their formulas: scaling, loss, inverse, columns."""

import numpy as np
import pytest
import torch

from cgnn.config import ModelConfig
from cgnn.model.heads import LOSSES, Binary, Multiclass, Regression
from cgnn.targets import Target

CONFIG = ModelConfig(width=4, head_width=5)
LABELS = np.array([12.0, np.nan, 250.0, 33.0, 1.5])


def regression(transform: str = "none") -> Regression:
    return Regression(Target(name="bulk_modulus", transform=transform, unit="GPa"), CONFIG).double()


FORWARD = {"none": lambda y: y, "log10": np.log10, "log": np.log, "sqrt": np.sqrt, "nonnegative": lambda y: y}
INVERSE = {"none": lambda t: t, "log10": lambda t: 10**t, "log": np.exp, "sqrt": lambda t: t * np.abs(t)}
INVERSE["nonnegative"] = lambda t: np.maximum(t, 0)


# Regression


@pytest.mark.parametrize("transform", FORWARD)
def test_scaling_is_that_of_the_known_labels_as_learned(transform):
    head = regression(transform)
    head.fit_scaling(LABELS)
    learned = FORWARD[transform](LABELS[[0, 2, 3, 4]])
    assert head.mean.item() == pytest.approx(learned.mean(), rel=1e-12)
    assert head.std.item() == pytest.approx(learned.std(), rel=1e-12)


@pytest.mark.parametrize("transform", FORWARD)
def test_decoding_is_the_inverse_of_the_learned_scale(transform):
    head = regression(transform)
    head.fit_scaling(LABELS)
    raw = np.array([-1.3, 0.0, 0.4, 2.0])
    expected = INVERSE[transform](head.mean.item() + head.std.item() * raw)
    np.testing.assert_allclose(head.decode(torch.from_numpy(raw)[:, None]), expected, rtol=1e-12)


@pytest.mark.parametrize("transform", FORWARD)
def test_labels_encoded_and_decoded_are_the_labels(transform):
    head = regression(transform)
    known = LABELS[np.isfinite(LABELS)]
    head.fit_scaling(known)
    scaled = (FORWARD[transform](known) - head.mean.item()) / head.std.item()
    np.testing.assert_allclose(head.decode(torch.from_numpy(scaled)[:, None]), known, rtol=1e-12)


LOSS_FORMULAS = {
    "mae": np.abs,
    "mse": lambda x: x**2,
    "huber": lambda x: np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5),
}


@pytest.mark.parametrize("transform", FORWARD)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_against_their_formulas(loss, transform):
    head = regression(transform)
    head.fit_scaling(LABELS)
    raw, labels = np.array([-0.3, 0.2, 3.1]), np.array([12.0, 99.0, 1.5])
    scaled = (FORWARD[transform](labels) - head.mean.item()) / head.std.item()
    got = head.losses(torch.from_numpy(raw)[:, None], torch.from_numpy(labels), loss)
    np.testing.assert_allclose(got, LOSS_FORMULAS[loss](raw - scaled), rtol=1e-12)


def test_losses_in_single_precision_stay_single():
    head = regression("log10").float()
    head.fit_scaling(LABELS)
    losses = head.losses(torch.zeros(2, 1), torch.tensor([5.0, 50.0], dtype=torch.float64), "mae")
    assert losses.dtype == torch.float32


@pytest.mark.parametrize(("labels", "mean"), [([7.0], 7.0), ([7.0, 7.0, np.nan], 7.0), ([np.nan], 0.0), ([], 0.0)])
def test_labels_without_spread_are_scaled_by_one(labels, mean):
    head = regression()
    head.fit_scaling(np.array(labels))
    assert (head.mean.item(), head.std.item()) == (mean, 1.0)


def test_scaling_travels_with_the_weights():
    head = regression()
    head.fit_scaling(LABELS)
    assert {"mean", "std"} <= set(head.state_dict())
    assert not {"mean", "std"} & {name for name, _ in head.named_parameters()}


def test_regression_has_one_column():
    values = np.array([1.0, 2.0])
    assert list(regression().columns(values)) == ["bulk_modulus"]
    assert np.array_equal(regression().columns(values)["bulk_modulus"], values)


# Classes


def test_binary_against_its_formulas():
    head = Binary(Target(name="metal", task="binary"), CONFIG).double()
    raw, labels = np.array([-2.0, 0.0, 3.5]), np.array([0.0, 1.0, 0.0])
    probability = 1 / (1 + np.exp(-raw))
    np.testing.assert_allclose(head.decode(torch.from_numpy(raw)[:, None]), probability, rtol=1e-12)
    got = head.losses(torch.from_numpy(raw)[:, None], torch.from_numpy(labels), "mae")
    expected = -np.log(np.where(labels == 1, probability, 1 - probability))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert list(head.columns(probability)) == ["metal"]


def test_multiclass_against_its_formulas():
    head = Multiclass(Target(name="kind", task="multiclass", classes=("a", "b", "c")), CONFIG).double()
    raw = np.array([[0.1, -2.0, 3.0], [5.0, 5.0, -5.0]])
    probability = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.decode(torch.from_numpy(raw)), probability, rtol=1e-12)
    got = head.losses(torch.from_numpy(raw), torch.tensor([1.0, 0.0]), "mae")
    np.testing.assert_allclose(got, -np.log(probability[[0, 1], [1, 0]]), rtol=1e-12)


def test_multiclass_columns_hold_the_likeliest_and_all_probabilities():
    head = Multiclass(Target(name="kind", task="multiclass", classes=("a", "b", "c")), CONFIG)
    probability = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    columns = head.columns(probability)
    assert list(columns) == ["kind", "kind_p_a", "kind_p_b", "kind_p_c"]
    assert columns["kind"].tolist() == ["c", "a"]
    np.testing.assert_array_equal(np.column_stack(list(columns.values())[1:]).astype(float), probability)


@pytest.mark.parametrize("raw", [-1e4, 1e4])
def test_certain_predictions_have_finite_losses(raw):
    binary = Binary(Target(name="metal", task="binary"), CONFIG)
    multiclass = Multiclass(Target(name="kind", task="multiclass", classes=("a", "b")), CONFIG)
    for label in (0.0, 1.0):
        labels = torch.tensor([label])
        assert torch.isfinite(binary.losses(torch.tensor([[raw]]), labels, "mae")).all()
        assert torch.isfinite(multiclass.losses(torch.tensor([[raw, -raw]]), labels, "mae")).all()


# Layers


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_hidden_layers(depth):
    head = Regression(Target(name="x"), ModelConfig(width=4, head_width=5, head_depth=depth))
    shapes = [tuple(layer.weight.shape) for layer in head.net if isinstance(layer, torch.nn.Linear)]
    assert shapes == [*([(5, 4)] + [(5, 5)] * (depth - 1) if depth else []), (1, 5 if depth else 4)]
    assert isinstance(head.net[0], torch.nn.Softplus)


def test_dropout_stands_after_each_hidden_layer():
    head = Regression(Target(name="x"), ModelConfig(width=4, head_depth=2, dropout=0.3))
    assert [layer.p for layer in head.net if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.3]
