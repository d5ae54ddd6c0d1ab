"""The recipe on real moduli reaches its floor (minutes; ``make test-slow``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgnn import config
from cgnn.train import train

FLOOR = {"bulk_modulus": 0.056, "shear_modulus": 0.110}
"""Validation MAE of log10(GPa), one model for both, nine tenths of the crystals to train on."""


@pytest.mark.slow
def test_elasticity_recipe_on_real_moduli(real_data: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    overrides = [f"data.path={real_data / 'elasticity.json.gz'}", f"data.cache={tmp_path / 'cache'}"]
    run = train(config.load(root / "configs" / "elasticity.yaml", overrides), tmp_path / "run")
    assert not run.set_aside
    for name, floor in FLOOR.items():
        assert run.metrics["val"][name]["mae_log10"] <= floor
