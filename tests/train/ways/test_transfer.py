"""Transfer: what is taken, frozen and slowed down is what was asked for, and a resumed run is the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cgnn.cli.report import describe
from cgnn.config import Config, build
from cgnn.errors import CheckpointError, ConfigError
from cgnn.model import CrystalGNN
from cgnn.model.remedies import REMEDIES
from cgnn.predict import Predictor
from cgnn.train import loop, train
from cgnn.train.checkpoint import MODEL_FILE, STATE_FILE, load_model, read_tensors, save_model
from cgnn.train.ways.transfer import REPORT_FILE, Transfer

BULK = {"name": "bulk_modulus", "column": "bulk_modulus.vrh", "unit": "GPa", "transform": "log10"}
POISSON = {"name": "poisson", "column": "homogeneous_poisson"}


def settings(small: dict[str, Any], init_from: Path, *changes: str, **transfer: Any) -> Config:
    """Return settings of a run that starts from another one."""
    return build({**small, "transfer": {"init_from": str(init_from), **transfer}}, changes)


def begun(config: Config, folder: Path) -> tuple[CrystalGNN, Transfer]:
    """Return a fresh network as `fit` makes it, after the transfer has begun."""
    torch.manual_seed(1)
    model = CrystalGNN(config.model, config.targets)
    method = Transfer(config, folder)
    method.begin(model)
    return model, method


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / REPORT_FILE).read_text()))


def test_all_parts_are_the_sources(small_settings: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    model, _ = begun(settings(small_settings, trained), tmp_path)
    (source,), _ = load_model(trained / "best" / MODEL_FILE)
    for name, tensor in source.state_dict().items():
        if not name.startswith("heads."):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert report(tmp_path)["loaded"] == ["embed", "convs.0", "convs.1", "heads.bulk_modulus", "heads.shear_modulus"]
    assert report(tmp_path)["not_loaded"] == {}
    assert report(tmp_path)["frozen"] == []


@pytest.mark.parametrize("remedy", sorted(REMEDIES.keys() - {"residual"}))  # that one learns nothing
@pytest.mark.parametrize("depth", [2, 3])
def test_convolutions_bring_what_remedies_have_learned_for_them(
    small_settings: dict[str, Any], trained: Path, tmp_path: Path, remedy: str, depth: int
) -> None:
    """From three layers to three and to two: all tensors that the network has are those of the source."""
    info = load_model(trained / "best" / MODEL_FILE).info
    config = build(small_settings, [f"model.remedy={remedy}", "model.depth=3"])
    source = CrystalGNN(config.model, config.targets)
    with torch.no_grad():
        for tensor in source.parameters():
            tensor.copy_(torch.rand(tensor.shape) + 1)  # none is what it is at first
    save_model(tmp_path / MODEL_FILE, [source], replace(info, config=config))
    changes = [f"model.remedy={remedy}", f"model.depth={depth}"]
    freeze = ["convs", "pool"] if remedy == "jumping" and depth == 3 else ["convs"]
    model, method = begun(settings(small_settings, tmp_path / MODEL_FILE, *changes, freeze=freeze), tmp_path / "run")
    for name, tensor in model.state_dict().items():
        if name.startswith("remedy.out.") and depth == 2:
            assert report(tmp_path / "run")["not_loaded"].keys() == {"pool"}
        elif not name.startswith("heads."):
            assert torch.equal(source.state_dict()[name], tensor), name
    for name, _ in model.named_parameters():
        is_frozen = name.startswith(("convs.", "remedy.")) and not (name.startswith("remedy.out.") and depth == 2)
        assert method.rate(name) == (0 if is_frozen else 1), name


def test_a_head_keeps_its_values_under_another_scaling(
    small_settings: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    """Values of 200 feature vectors in GPa, within float32 rounding."""
    config = settings(small_settings, trained)
    torch.manual_seed(1)
    model = CrystalGNN(config.model, config.targets)
    head = model.head("bulk_modulus")
    head.mean.fill_(1.2)
    head.std.fill_(0.3)
    Transfer(config, tmp_path).begin(model)
    source = load_model(trained / "best" / MODEL_FILE).members[0].head("bulk_modulus")
    features = torch.randn(200, config.model.width)
    assert (float(head.mean), float(head.std)) == pytest.approx((1.2, 0.3), rel=1e-6)
    torch.testing.assert_close(head.decode(head(features)), source.decode(source(features)), rtol=1e-5, atol=0)


def test_report_lists_what_does_not_fit(small_settings: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    values = {**small_settings, "targets": [{**BULK, "transform": "none"}, POISSON]}
    config = settings(values, trained, "model.depth=3", "model.elements=[one_hot]", take=["embed", "convs", "heads"])
    model, _ = begun(config, tmp_path)
    found = report(tmp_path)
    assert found["loaded"] == ["convs.0", "convs.1"]
    assert found["not_loaded"] == {
        "embed": "model.elements is ('one_hot', 'properties') there, ('one_hot',) here",
        "convs.2": "the source has none",
        "heads.bulk_modulus": "transform is 'log10' there, 'none' here",
        "heads.poisson": "the source has none",
    }
    torch.manual_seed(1)
    fresh = CrystalGNN(config.model, config.targets).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name]) != name.startswith(("convs.0", "convs.1")) or "running" in name, name


@pytest.mark.parametrize(
    ("change", "part", "reason"),
    [
        ("model.activation=silu", "convs.0", "model.activation is 'softplus' there, 'silu' here"),
        ("model.gaussian_range=[0, 6]", "convs.1", "model.gaussian_range is (0.0, 8.0) there, (0.0, 6.0) here"),
        ("model.head_width=9", "heads.bulk_modulus", "model.head_width is 8 there, 9 here"),
        ("model.spread=true", "heads.bulk_modulus", "model.spread is False there, True here"),
        ("model.pooling=attention", "pool", "the source has none"),
        ("model.descriptors=[volume]", "descriptors", "not asked for"),
    ],
)
def test_settings_that_weights_know(
    small_settings: dict[str, Any], trained: Path, tmp_path: Path, change: str, part: str, reason: str
) -> None:
    begun(settings(small_settings, trained, change), tmp_path)
    assert report(tmp_path)["not_loaded"][part] == reason


def test_only_what_is_asked_for(small_settings: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    begun(settings(small_settings, trained, take=["convs.1", "heads.shear_modulus"]), tmp_path)
    assert report(tmp_path)["loaded"] == ["convs.1", "heads.shear_modulus"]
    assert set(report(tmp_path)["not_loaded"].values()) == {"not asked for"}


def test_rates(small_settings: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    config = settings(
        small_settings, trained, layer_decay=0.5, freeze=["convs.0"], slow={"convs": 0.1, "convs.1": 0.3, "embed": 2.0}
    )
    model, method = begun(config, tmp_path)
    expected = {"embed": 2 * 0.5**3, "convs.0": 0.0, "convs.1": 0.3 * 0.5}
    rates = report(tmp_path)["rates"]
    assert rates == pytest.approx({**expected, "heads.bulk_modulus": 1.0, "heads.shear_modulus": 1.0})
    for name, _ in model.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.startswith("convs") else name.split(".")[0]
        assert method.rate(name) == pytest.approx(expected.get(part, 1.0)), name


def test_optimizer_has_these_rates(
    small_settings: dict[str, Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[float, int]] = []
    step = loop._Session._step

    def noted(self: Any, indices: Any) -> None:
        step(self, indices)
        groups = self.optimizer.param_groups
        seen.append({round(group["lr"] / groups[0]["lr"], 9): len(group["params"]) for group in groups})

    monkeypatch.setattr(loop._Session, "_step", noted)
    config = settings(small_settings, trained, "train.epochs=1", freeze=["embed"], slow={"convs": 0.25})
    train(config, tmp_path / "run")
    assert all(set(rates) == {1.0, 0.25} for rates in seen)
    assert len(seen) == 3


def test_frozen_parts_do_not_move(small_settings: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    """Weights and running statistics of frozen parts, with averaged weights; all others move."""
    lines: list[str] = []
    config = settings(small_settings, trained, "train.seed=5", "train.ema=0.9", freeze=["embed", "convs.0"])
    run = train(config, tmp_path / "run", tell=lines.append)
    (model,), info = load_model(run.model_file)
    source = load_model(trained / "best" / MODEL_FILE).members[0].state_dict()
    state = read_tensors(tmp_path / "run" / "last" / STATE_FILE)[0]
    for name, tensor in model.state_dict().items():
        if name.startswith(("embed", "convs.0")):
            assert torch.equal(tensor, source[name]), name
            assert torch.equal(state[f"model.{name}"], source[name]), name
    for name in ("convs.1.norm.running_mean", "convs.1.target.weight", "heads.y_bulk_modulus.net.1.weight"):
        assert not torch.equal(model.state_dict()[name], source[name]), name
    assert f"{trained} (sha256 " in info.source["init_from"]
    assert f"\nstarted from {trained} (sha256 " in describe(Predictor.load(run.folder))
    assert lines == [
        f"transfer: from {trained}: embed, convs.0, convs.1, heads.bulk_modulus, heads.shear_modulus",
        "transfer: frozen: embed, convs.0",
    ]


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize(("source_stays", "hints"), [(True, False), (False, False), (False, True)])
def test_resumed_is_unbroken(
    small_settings: dict[str, Any],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source_stays: bool,
    hints: bool,
) -> None:
    source = tmp_path / "source.safetensors"
    source.write_bytes((trained / "best" / MODEL_FILE).read_bytes())
    changes = ["model.dropout=0.1", "train.checkpoint_every=2"]
    config = settings(
        small_settings, source, *changes, freeze=["embed"], slow={"convs": 0.3}, layer_decay=0.9, hints=hints
    )
    train(config, tmp_path / "unbroken")
    step, count = loop._Session._step, iter(range(100))

    def stepped(self: Any, indices: Any) -> None:
        if next(count) == 5:
            raise Killed
        step(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Session, "_step", stepped)
        with pytest.raises(Killed):
            train(config, tmp_path / "run")
    if not source_stays:
        source.unlink()
    train(config, tmp_path / "run", resume=True)
    for name in (f"best/{MODEL_FILE}", "metrics.json", "predictions.csv", REPORT_FILE, "config.yaml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name
    found, expected = (read_tensors(tmp_path / name / "last" / STATE_FILE)[0] for name in ("run", "unbroken"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_source_is_not_taken_up(small_settings: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    config = settings(small_settings, trained, "train.epochs=1")
    train(config, tmp_path / "run")
    content = report(tmp_path / "run") | {"checksum": "0" * 64}
    (tmp_path / "run" / REPORT_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="other data"):
        train(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"take": ["conv"]}, r"transfer\.take: unknown part 'conv'; did you mean 'convs'\?"),
        ({"freeze": ["convs.2"]}, r"transfer\.freeze: unknown part 'convs\.2'; did you mean 'convs"),
        ({"slow": {"heads.bulk": 0.1}}, r"transfer\.slow: unknown part 'heads\.bulk'; did you mean 'heads\.bulk_mod"),
        ({"take": ["convs"], "freeze": ["embed"]}, r"transfer\.freeze: embed would stay as it was drawn"),
        ({"freeze": ["embed", "convs", "heads"]}, "everything is frozen"),
        ({"take": ["descriptors"]}, "nothing of it fits this model: embed: not asked for; convs.0: not asked for"),
    ],
)
def test_impossible_requests(
    small_settings: dict[str, Any], trained: Path, tmp_path: Path, transfer: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(settings(small_settings, trained, **transfer), tmp_path / "run")


def test_other_graphs_are_refused(small_settings: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    message = r"other settings: graph\.k is 12 there, 8 here, graph\.reach is 1\.25 there, 1\.5 here; use these"
    with pytest.raises(ConfigError, match=message):
        Transfer(settings(small_settings, trained, "graph.k=8", "graph.reach=1.5"), tmp_path)
    Transfer(settings(small_settings, trained, "graph.max_atoms=50"), tmp_path)


def test_no_model_there(small_settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no model found"):
        Transfer(settings(small_settings, tmp_path / "nowhere"), tmp_path)


def test_a_failed_start_may_be_tried_again(small_settings: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="everything is frozen"):
        train(settings(small_settings, trained, freeze=["embed", "convs", "heads"]), tmp_path / "run")
    train(settings(small_settings, trained, "train.epochs=1"), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("transfer.frieze=[embed]", r"transfer\.frieze: unknown key; did you mean 'freeze'\?"),
        ("transfer.slow={embed: 0}", r"transfer\.slow\.embed: Input should be greater than 0"),
        ("transfer.layer_decay=1.5", r"transfer\.layer_decay: Input should be less than or equal to 1"),
        ("transfer.take=embed", r"transfer\.take: Input should be a list"),
    ],
)
def test_settings_are_checked(small_settings: dict[str, Any], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(small_settings, ["transfer.init_from=run", override])


def test_a_section_left_out_takes_overrides(small_settings: dict[str, Any]) -> None:
    """As with ``config.yaml`` of a run, where the section stands with null."""
    config = build({**small_settings, "transfer": None}, ["transfer.init_from=run"])
    assert config.transfer is not None
    assert config.transfer.init_from == "run"
    with pytest.raises(ConfigError, match=r"transfer\.init_from: missing"):
        build(small_settings, ["transfer.freeze=[embed]"])
