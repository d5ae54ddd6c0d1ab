"""The learning curve: growing parts, as many steps each, scored on the same crystals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cgnn.config import build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.data.split import split
from cgnn.train import curve, learning_curve
from cgnn.train.checkpoint import MODEL_FILE, load_model
from cgnn.train.method import Method


def test_learning_curve(small_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(small_settings, ["train.epochs=2"])
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    parts = split(config.data.split, dataset.summaries())
    indices = {name: dataset.indices(getattr(parts, name)) for name in ("train", "val", "test")}
    full = len(indices["train"])
    fits: list[tuple[int, set[int], int]] = []
    fit = curve.fit

    def noted(settings: Any, data: Any, chosen: Any, *rest: Any, **named: Any) -> Any:
        fits.append((settings.train.seed, set(chosen["train"].tolist()), settings.train.epochs))
        return fit(settings, data, chosen, *rest, **named)

    monkeypatch.setattr(curve, "fit", noted)
    seen: list[dict[str, Any]] = []
    rows = learning_curve(config, dataset, indices, [full // 2, full], tmp_path, seeds=(0, 1), report=seen.append)

    assert rows == seen
    assert {(row["size"], row["seed"]) for row in rows} == {(full // 2, 0), (full, 0), (full // 2, 1), (full, 1)}
    assert {row["score"] for row in rows} == {"mae", "mae_log10"}
    assert all(row["value"] > 0 and row["baseline"] > 0 for row in rows)
    for (_, small, many), (_, large, few) in (fits[:2], fits[2:]):
        assert small < large == set(indices["train"].tolist())
        assert (many, few) == (round(2 * full / (full // 2)), 2)
    assert fits[0][1] != fits[2][1], "seeds choose other crystals"


def test_a_finished_size_is_not_fitted_again(small_settings: dict[str, Any], tmp_path: Path) -> None:
    config = build(small_settings, ["train.epochs=1"])
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    parts = split(config.data.split, dataset.summaries())
    indices = {name: dataset.indices(getattr(parts, name)) for name in ("train", "val", "test")}
    first = learning_curve(config, dataset, indices, [10], tmp_path)
    state = tmp_path / "size-10-seed-0" / "last" / "state.safetensors"
    written = state.stat().st_mtime_ns
    assert learning_curve(config, dataset, indices, [10], tmp_path) == first
    assert state.stat().st_mtime_ns == written


def test_methods_see_the_same_crystals(
    small_settings: dict[str, Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(small_settings)
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    parts = split(config.data.split, dataset.summaries())
    indices = {name: dataset.indices(getattr(parts, name)) for name in ("train", "val", "test")}
    chosen: list[list[int]] = []
    fit = curve.fit

    def noted(settings: Any, data: Any, used: Any, *rest: Any, **named: Any) -> Any:
        chosen.append([settings.train.epochs, *used["train"].tolist()])
        return fit(settings, data, used, *rest, **named)

    monkeypatch.setattr(curve, "fit", noted)
    made: list[tuple[Path, bool]] = []

    def plain(settings: Any, folder: Path, resume: bool) -> Method:
        made.append((folder, resume))
        return Method()

    start = f"transfer.init_from={trained}"
    methods = {"scratch": curve.Arm(method=plain), "transfer": curve.Arm((start, "transfer.freeze=[convs]"))}
    rows = learning_curve(config, dataset, indices, [8, 16], tmp_path, methods=methods, epochs=lambda size: 16 // size)

    assert [row["method"] for row in rows[::4]] == ["scratch", "transfer", "scratch", "transfer"]
    assert chosen[0] == chosen[1]
    assert chosen[2] == chosen[3]
    assert [(entry[0], len(entry) - 1) for entry in chosen] == [(2, 8), (2, 8), (1, 16), (1, 16)]
    assert made == [(tmp_path / "scratch" / f"size-{size}-seed-0", True) for size in (8, 16)]
    place = tmp_path / "transfer" / "size-8-seed-0"
    taken, source = (load_model(folder / "best" / MODEL_FILE).members[0].state_dict() for folder in (place, trained))
    assert torch.equal(taken["convs.0.norm.running_mean"], source["convs.0.norm.running_mean"])
    other = load_model(tmp_path / "scratch" / "size-8-seed-0" / "best" / MODEL_FILE).members[0].state_dict()
    assert not torch.equal(other["convs.0.norm.running_mean"], source["convs.0.norm.running_mean"])
