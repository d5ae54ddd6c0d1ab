"""The risk of nnPU, written out again."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cgnn.train.pu.ways import NonNegative, risks

PRIOR = 0.3


def written_out(raw, is_positive):
    wrong, right = (lambda z: np.log1p(np.exp(-z))), (lambda z: np.log1p(np.exp(z)))
    p, u = raw[is_positive], raw[~is_positive]
    positive = PRIOR * wrong(p).mean() if len(p) else 0.0
    negative = (right(u).mean() if len(u) else 0.0) - (PRIOR * right(p).mean() if len(p) else 0.0)
    return positive, negative


class Net:
    targets = (SimpleNamespace(name="made", field="y_made"),)


def step(raw, labels):
    return SimpleNamespace(
        model=Net(), forward=lambda batch: {"made": raw[:, None]}, batch={"y_made": torch.from_numpy(labels)}
    )


@pytest.mark.parametrize("positives", [0, 3, 8])
def test_terms(rng, positives):
    raw, is_positive = rng.normal(size=8), np.arange(8) < positives
    found = risks(torch.from_numpy(raw), torch.from_numpy(is_positive), PRIOR)
    assert [float(term) for term in found] == pytest.approx(written_out(raw, is_positive), rel=1e-12)


def test_the_step_goes_up_a_negative_risk():
    """Positives with high and unlabelled with low scores: the second term is below 0, and its gradient turned."""
    labels = np.array([1.0, 1.0, 0.0, 0.0])
    raw = torch.tensor([9.0, 9.0, -9.0, -9.0], dtype=torch.float64, requires_grad=True)
    _, negative = written_out(raw.detach().numpy(), labels == 1)
    assert negative < 0
    loss = NonNegative(PRIOR).loss(step(raw, labels))
    assert float(loss.detach()) == pytest.approx(-negative, rel=1e-12)
    loss.backward()
    assert (raw.grad[:2] > 0).all()  # down the step: lower scores of positives, against learning by heart
    raw = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    positive, negative = written_out(np.zeros(4), labels == 1)
    loss = NonNegative(PRIOR).loss(step(raw, labels))
    assert float(loss.detach()) == pytest.approx(positive + negative, rel=1e-12)


def test_validation_is_the_risk_cut_at_zero(rng):
    raw, labels = rng.normal(size=9), (np.arange(9) % 3 == 0).astype(float)
    batches = [
        {"raw": torch.from_numpy(raw[s]), "y_made": torch.from_numpy(labels[s])} for s in (slice(0, 4), slice(4, 9))
    ]

    class Model(Net):
        def __call__(self, batch):
            return {"made": batch["raw"][:, None]}

    positive, negative = written_out(raw, labels == 1)
    assert NonNegative(PRIOR).validate(Model(), batches)["val_score"] == pytest.approx(
        positive + max(negative, 0), rel=1e-12
    )


def test_the_risk_is_unbiased(rng):
    """Of a known mixture, R estimates the mean loss with the true labels: 200,000 draws, within 0.01."""
    n = 200_000
    truth = rng.random(n) < PRIOR
    x = rng.normal(np.where(truth, 1.0, -1.0))
    known = rng.normal(1.0, size=n)
    z = 0.7 * np.concatenate([known, x]) + 0.1
    is_positive = np.arange(2 * n) < n
    positive, negative = risks(torch.from_numpy(z), torch.from_numpy(is_positive), PRIOR)
    true = np.mean(np.log1p(np.exp(np.where(truth, -1, 1) * z[n:])))
    assert float(positive + negative) == pytest.approx(true, abs=0.01)
