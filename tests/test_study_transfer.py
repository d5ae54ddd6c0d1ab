"""The study of transfer: its table, protocol and picture say what its lines say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import study_transfer

    yield study_transfer
    for name in ("study_transfer", "study"):
        sys.modules.pop(name, None)


def lines() -> list[dict[str, Any]]:
    return [
        {
            "arm": arm, "size": size, "asked": str(size), "seed": seed, "part": "tenth",
            "test": 486, "test_in_source": 427, **({"source": "energies"} if arm == "transfer" else {}),
            "bulk_modulus": base * factor + 0.01 * seed, "shear_modulus": 2 * base, "steps": 1500, "seconds": 60.0,
        }
        for arm, factor in (("scratch", 1.0), ("transfer", 0.5))
        for size, base in ((100, 0.12), (300, 0.09))
        for seed in (0, 1, 2)
    ]  # fmt: skip


def settings() -> dict[str, Any]:
    study = yaml.safe_load((ROOT / "benchmarks" / "studies" / "transfer.yaml").read_text())
    return {**study, "arms": {name: study["arms"][name] for name in ("scratch", "transfer")}}


def test_table(study: Any) -> None:
    """Seeds add 0, 0.01 and 0.02: the mean is 0.01 higher and the standard deviation 0.01.

    Seed by seed, 0.06 / 0.12, 0.07 / 0.13 and 0.08 / 0.14 save 50, 46.2 and 42.9 %: 46.3 with a standard error of 2.1.
    """
    rows = [row.split(" | ") for row in study.table(settings(), lines()).splitlines()]
    assert rows[0] == ["| target", "labels", "scratch", "transfer", "transfer against scratch", "runs |"]
    assert rows[2] == ["| bulk modulus", "100", "0.1300 ± 0.0100", "0.0700 ± 0.0100", "-46 ± 2 %", "3 + 3 |"]
    assert rows[5] == ["| shear modulus", "300", "0.1800 ± 0.0000", "0.1800 ± 0.0000", "+0 ± 0 %", "3 + 3 |"]


def test_only_common_seeds_are_compared(study: Any) -> None:
    some = [line for line in lines() if (line["arm"], line["seed"]) != ("scratch", 2)]
    rows = [row.split(" | ") for row in study.table(settings(), some).splitlines()]
    assert rows[2][4:] == ["-48 ± 2 %", "2 + 3 |"]


def test_a_missing_fit_is_a_gap(study: Any) -> None:
    some = [line for line in lines() if (line["arm"], line["size"]) != ("transfer", 300)]
    rows = [row.split(" | ") for row in study.table(settings(), some).splitlines()]
    assert rows[3] == ["| bulk modulus", "300", "0.1000 ± 0.0100", "", "", "3 |"]


def test_document(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written twice, it is the same; what stands around the markers stays."""
    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs" / "transfer.md"
    document.write_text("before\n<!-- study transfer: begin -->\nold\n<!-- study transfer: end -->\nafter\n")
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules["study"], "ROOT", tmp_path)
    study.write(settings(), lines())
    text = document.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nafter\n")
    assert "old" not in text
    assert "427 of the test crystals were in the training part of the source" in text
    assert "12 fits, 12 minutes of one thread" in text
    for target in ("bulk_modulus", "shear_modulus"):
        assert f"(transfer-{target}.png)" in text
        assert (tmp_path / "docs" / f"transfer-{target}.png").stat().st_size > 10_000
    study.write(settings(), lines())
    assert document.read_text() == text
