"""Every entry of `HEADS` meets one contract."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cgnn.config import ModelConfig
from cgnn.model.heads import HEADS, LOSSES, Head
from cgnn.targets import Target

CLASSES = ("metal", "semiconductor", "insulator")
LABELS = {"regression": [3.0, 150.0, 9.5, 40.0], "binary": [0.0, 1.0, 1.0, 0.0], "multiclass": [2.0, 0.0, 1.0, 1.0]}

pytestmark = pytest.mark.parametrize("task", HEADS)


@pytest.fixture
def head(task: str) -> Head:
    target = Target(name="gap", task=task, classes=CLASSES if task == "multiclass" else ())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HEADS[task](target, ModelConfig(width=6, head_width=7, head_depth=2)).double()


@pytest.fixture
def h(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.normal(size=(4, 6)))


def test_the_contract_has_labels_for_every_entry(task):
    assert task in LABELS


def test_raw_outputs_have_a_row_each(task, head, h):
    assert head(h).shape == (4, head.outputs)
    assert head(h[:1]).shape == (1, head.outputs)
    assert head(h[:0]).shape == (0, head.outputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_there_is_a_loss_for_each_label(task, head, h, loss):
    labels = torch.tensor(LABELS[task], dtype=torch.float64)
    head.fit_scaling(labels.numpy())
    losses = head.losses(head(h), labels, loss)
    assert losses.shape == (4,)
    assert (losses > 0).all()
    losses.mean().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_a_label_influences_its_own_loss_only(task, head, h):
    labels = torch.tensor(LABELS[task], dtype=torch.float64)
    changed = labels.clone()
    changed[0] = 1 - labels[0] if task != "multiclass" else 0.0
    before, after = (head.losses(head(h), values, "mae") for values in (labels, changed))
    assert before[0] != after[0]
    assert torch.equal(before[1:], after[1:])


def test_decoded_predictions_are_finite_and_in_double_precision(task, head, h):
    decoded = head.decode(head(h))
    assert decoded.dtype == torch.float64
    assert len(decoded) == 4
    assert torch.isfinite(decoded).all()
    assert head.float().decode(head(h.float())).dtype == torch.float64


def test_the_first_column_has_the_targets_name(task, head, h):
    columns = head.columns(head.decode(head(h)).detach().numpy())
    assert next(iter(columns)) == "gap"
    assert all(len(values) == 4 for values in columns.values())
    assert all(name == "gap" or name.startswith("gap_") for name in columns)


def test_fitting_the_scaling_changes_no_weight_and_takes_unknown_labels(task, head):
    before = [parameter.clone() for parameter in head.parameters()]
    head.fit_scaling(np.array([*LABELS[task], np.nan]))
    assert all(torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True))
    assert all(torch.isfinite(buffer).all() for buffer in head.buffers())


def test_a_stored_head_predicts_the_same(task, head, h):
    head.fit_scaling(np.array(LABELS[task]))
    copy = HEADS[task](head.target, ModelConfig(width=6, head_width=7, head_depth=2)).double()
    copy.load_state_dict(head.state_dict())
    assert torch.equal(copy.decode(copy(h)), head.decode(head(h)))


def test_training_and_evaluation_differ_by_dropout_alone(task, head, h):
    assert torch.equal(head.train()(h), head.eval()(h))
    dropped = HEADS[task](head.target, ModelConfig(width=6, head_width=64, dropout=0.5)).double()
    assert not torch.equal(dropped.train()(h), dropped.eval()(h))
