"""The command ``screen``: a short list, reasons, and messages for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from samples import Document, Run, changed, overlap

ROOT = Path(__file__).parents[2]
STAGES: list[dict[str, Any]] = [
    {"kind": "predict", "model": "elasticity"},
    {"kind": "derive", "properties": ["youngs_modulus"], "draws": 50},
    {"kind": "filter", "rule": "num_elements == 2 and bulk_modulus > 60"},
    {"kind": "rank", "of": "youngs_modulus", "keep": 3},
]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stages") / "screen.yaml"
    path.write_text(yaml.safe_dump({"stages": STAGES, "inputs": {"sets": ["relax"]}}))
    return path


@pytest.fixture(scope="module")
def candidates(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candidates") / "some.json"
    path.write_text(json.dumps(changed(documents[:14], {5: overlap})))
    return path


def test_screen(cgnn: Run, stages: Path, candidates: Path, documents: list[Document], tmp_path: Path) -> None:
    output = tmp_path / "screen"
    found = cgnn("screen", stages, candidates, "--output", output, "--engine", "serial", "-o", "stages.3.keep=2")
    assert found.code == 3  # one crystal can't be used
    assert "1 crystal could not be used (listed in rejected.csv)" in found.err
    assert any(line.split()[0] == "rank" and line.endswith(" 2") for line in found.out.splitlines())
    table = pd.read_csv(output / "ranked.csv")
    assert len(table) == 2
    assert table["material_id"].iloc[0] in found.out
    assert len(list((output / "inputs").iterdir())) == 2
    for name in (documents[5]["material_id"], table["material_id"].iloc[1]):
        why = cgnn("screen", "--why", name, "--output", output)
        assert why.code == 0
        assert name in why.out
    assert (
        "dropped at stage 'predict': atoms 0 and"
        in cgnn("screen", "--why", documents[5]["material_id"], "--output", output).out
    )
    same = cgnn("screen", stages, candidates, "--output", output)
    assert same.code == 2
    assert "holds a screen already; resume it (--resume)" in same.err
    again = cgnn("screen", stages, candidates, "--output", output, "--resume", "-o", "stages.3.keep=2", "--strict")
    assert again.code == 2
    assert "--strict" in again.err
    other = cgnn("screen", stages, candidates, "--output", output, "--resume")
    assert "had other settings" in other.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "stages.2.rule=bulk_modulos > 3"], "unknown column 'bulk_modulos'; did you mean 'bulk_modulus'"),
        (["-o", "stages.2.rule=bulk_modulus = 3"], "no expression: an assignment"),
        (["-o", "stages.2.rul=metal"], "stages.2.filter.rul: unknown key; did you mean 'rule'"),
        (["-o", "stages.0.model=formation_energy"], "unknown modulus 'bulk_modulus'"),
        (["--engine", "procesess"], "unknown engine 'procesess'"),
    ],
)
def test_bad_requests(
    arguments: list[str], message: str, cgnn: Run, stages: Path, candidates: Path, tmp_path: Path
) -> None:
    found = cgnn("screen", stages, candidates, "--output", tmp_path / "s", *arguments)
    assert found.code == 2
    assert message in found.err


def test_missing_things(cgnn: Run, stages: Path, tmp_path: Path) -> None:
    assert "nothing to screen" in cgnn("screen", stages).err
    assert "holds no finished screen" in cgnn("screen", "--why", "mp-1", "--output", tmp_path).err
    assert "no such file" in cgnn("screen", stages, tmp_path / "none.json", "--output", tmp_path / "s").err


def test_the_shipped_hierarchy_fits_together() -> None:
    from cgnn.screen import Funnel

    Funnel.load(ROOT / "configs" / "screen.yaml", device="cpu")
