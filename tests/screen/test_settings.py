"""Settings of a screen: read, written back, named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgnn.errors import ConfigError
from cgnn.screen import build_screen, load_screen

SHIPPED = Path(__file__).parents[2] / "configs" / "screen.yaml"


def test_the_shipped_ones_are_written_back_whole(tmp_path: Path) -> None:
    settings = load_screen(SHIPPED)
    settings.save(tmp_path / "again.yaml")
    assert load_screen(tmp_path / "again.yaml") == settings
    assert [stage.keep for stage in settings.stages if stage.kind == "rank"] == [100, 20]


def test_stages_without_a_name_get_one() -> None:
    stages = [
        {"kind": "filter", "rule": "metal"},
        {"kind": "filter", "rule": "metal"},
        {"kind": "rank", "of": "density"},
    ]
    assert [stage.name for stage in build_screen({"stages": stages}).stages] == ["filter", "filter 2", "rank"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "expected keys such as 'stages' and 'columns', got list"),
        ({}, "stages: missing"),
        ({"stages": []}, "stages: .*at least 1 item"),
        ({"stages": ["rank"]}, "stages.0"),
        ({"stages": [{"kind": "rank", "of": 3}]}, "stages.0.rank.of"),
        ({"stages": [{"kind": "rank", "of": "density"}], "inputs": {"sets": ["phonons"]}}, "inputs.sets.0"),
        ({"stages": [{"kind": "rank", "of": "density"}], "colums": {}}, "did you mean 'columns'"),
        ({"stages": [{"kind": "rank", "of": "density", "quantile": 1.5}]}, "stages.0.rank.quantile"),
    ],
)
def test_wrong_ones_are_named(values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_screen(values)
