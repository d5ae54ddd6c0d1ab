"""What several networks say together."""

import numpy as np
import pytest
import torch

from cgnn.config import build
from cgnn.model import CrystalGNN
from cgnn.model.members import combined

TARGETS = [
    {"name": "bulk_modulus", "unit": "GPa", "transform": "log10"},
    {"name": "energy"},
    {"name": "is_metal", "task": "binary"},
    {"name": "system", "task": "multiclass", "classes": ["a", "b", "c"]},
]


def members(count, **model):
    config = build({"targets": TARGETS, "model": {"width": 4, "depth": 1, "head_width": 4, "gaussians": 4, **model}})
    found = []
    for number in range(count):
        torch.manual_seed(number)
        found.append(CrystalGNN(config.model, config.targets).eval())
        found[-1].head("bulk_modulus").fit_scaling(np.array([10.0, 100.0 + number, 300.0]))
    return found


def outputs(models, rows=7):
    torch.manual_seed(99)
    return [
        {t.name: torch.randn(rows, 2 if m.config.spread and t.task == "regression" else m.head(t.name).outputs)
         for t in m.targets}
        for m in models
    ]  # fmt: skip


@pytest.mark.parametrize("spread", [False, True])
def test_one_member_says_what_it_says_alone(spread):
    (model,) = members(1, spread=spread)
    (raw,) = outputs([model])
    found = combined([model], [raw])
    for name, values in model.decode(raw).items():
        assert torch.equal(found.decoded[name], values)
    assert set(found.learned) == {"bulk_modulus", "energy"}
    for learned in found.learned.values():
        assert torch.equal(learned.variance_between, torch.zeros(7, dtype=torch.float64))
    value, scale = model.head("energy").learned(raw["energy"])
    assert torch.equal(found.learned["energy"].value, value)
    np.testing.assert_allclose(found.learned["energy"].scale_within, scale, rtol=1e-15)
    assert bool((found.learned["energy"].scale_within > 0).all()) is spread


def test_mean_and_spread_written_out():
    models = members(3, spread=True)
    raws = outputs(models)
    found = combined(models, raws)
    logs = np.stack([m.head("bulk_modulus").learned(r["bulk_modulus"])[0] for m, r in zip(models, raws, strict=True)])
    scales = np.stack([m.head("bulk_modulus").learned(r["bulk_modulus"])[1] for m, r in zip(models, raws, strict=True)])
    learned = found.learned["bulk_modulus"]
    np.testing.assert_allclose(learned.value, logs.mean(0), rtol=1e-13)
    np.testing.assert_allclose(learned.variance_between, logs.var(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(learned.scale_within, np.sqrt((scales**2).mean(0)), rtol=1e-13)
    np.testing.assert_allclose(found.decoded["bulk_modulus"], 10 ** logs.mean(0), rtol=1e-13)


def test_probabilities_are_averaged():
    models = members(2)
    raws = outputs(models)
    found = combined(models, raws)
    for name in ("is_metal", "system"):
        each = [model.decode(raw)[name].numpy() for model, raw in zip(models, raws, strict=True)]
        np.testing.assert_allclose(found.decoded[name], (each[0] + each[1]) / 2, rtol=1e-13)
    np.testing.assert_allclose(found.decoded["system"].sum(1), 1.0, rtol=1e-12)
