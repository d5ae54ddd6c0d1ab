"""The demonstration of ``make demo``: it runs, draws its pictures, and in full reaches its figures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PICTURES = ["history.png", "learning_curve.png", "parity_bulk_modulus.png", "parity_shear_modulus.png"]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo_in_short(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(["--output", str(tmp_path / "demo"), "--epochs", "1"])
    assert sorted(path.name for path in (tmp_path / "demo").glob("*.png")) == PICTURES
    said = capsys.readouterr().out
    for part in ("MAE (log10)", "baseline", "Cu3Au", "units: {'bulk_modulus': 'GPa'", "554 crystals   MAE"):
        assert part in said


@pytest.mark.slow
def test_demo_is_three_times_better_than_the_mean(demo: ModuleType, tmp_path: Path) -> None:
    demo.main(["--output", str(tmp_path / "demo")])
    scores = json.loads((tmp_path / "demo" / "metrics.json").read_text())["test"]
    for name in ("bulk_modulus", "shear_modulus"):
        assert scores[name]["mae_log10"] < scores[name]["baseline_mae_log10"] / 3
