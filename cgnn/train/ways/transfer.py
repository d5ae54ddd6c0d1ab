"""Transfer: a fit that starts from a stored model, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import nn

from cgnn.config import Config, HintsConfig, TransferConfig, load
from cgnn.errors import ConfigError, unknown
from cgnn.files import write_json
from cgnn.model import CrystalGNN
from cgnn.model.heads import Regression
from cgnn.model.remedies import REMEDIES
from cgnn.strict import build_as
from cgnn.train.checkpoint import STATE_FILE, ModelInfo, load_model
from cgnn.train.engine import is_first_process
from cgnn.train.method import Method
from cgnn.train.pretrained import model_file

REPORT_FILE = "transfer.json"
LIMITS = {"max_atoms", "max_edges"}
"""Graph settings that say which crystals are used, not what their graphs are."""

LAYERS = ("convs", "edge_updates")
"""Parts of a network that it has several of, one above the other."""

SETTINGS: dict[str, set[str]] = {
    "embed": {"elements"},
    "pool": {"pooling"},
    "descriptors": {"descriptors"},
    "heads": {"activation", "spread", "head", "head_width", "head_depth", "trees", "leaves", "length", "ridge"},
}
"""Part -> settings of the model that its weights know beside their shapes."""

ELSEWHERE = {"depth", "dropout", "hints"}.union(*SETTINGS.values()) - {"activation"}
"""Settings that the weights of a convolution do not know; they know all others, also those still to come."""

SAME_TARGET = {"task", "level", "transform", "unit", "classes"}


@dataclass(frozen=True)
class _Source:
    model: CrystalGNN
    info: ModelInfo
    checksum: str


def _silent(line: str) -> None:
    """Tell nobody; a function with a name, because methods are sent to processes."""


class Transfer(Method):
    """Starts from a stored model: takes, freezes and slows down parts of the network.

    A part (an embedding, a convolution, a head) is taken whole or not at all: it fits where its tensors have the
    same names and shapes and where the settings that its weights know are the same. A head is taken for a target of
    the same name and kind. Its scaling comes from the new labels, and its last layer is rescaled so that its values
    stay what they were; the spread of its errors is left on the scale of the labels and learned anew. Frozen parts
    are kept in evaluation mode. The report, ``transfer.json`` in the run folder, says what was loaded and what not.

    Args:
        config: All settings, with a section ``transfer``.
        folder: Run folder.
        resume: Whether a run in the folder goes on: its state holds the weights, and the source is not needed.
        tell: Is given lines for people.

    Raises:
        ConfigError: A part has no such name, or the source was trained on other graphs.
        CheckpointError: The source is no model.
    """

    def __init__(
        self,
        config: Config,
        folder: str | Path,
        resume: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        assert config.transfer is not None
        self.settings: TransferConfig = config.transfer
        if self.settings.hints and config.model.hints is None:
            raise ConfigError("transfer.hints: no room for the source; use cgnn.train.ways.transfer.with_hints(config)")
        self._config, self._tell, self._report = config, tell or _silent, Path(folder) / REPORT_FILE
        _check_names(config)
        is_begun = resume and (Path(folder) / "last" / STATE_FILE).is_file()
        noted = _noted(self._report) if is_begun else ""
        self._source = None if noted else _read(self.settings.init_from)
        if self._source is not None:
            _check_graphs(self._source, config, self.settings.init_from)
        checksum = self._source.checksum if self._source is not None else noted
        self.key = f"transfer {checksum}"
        self.source = {"init_from": f"{self.settings.init_from} (sha256 {checksum[:16]})"}

    def begin(self, model: CrystalGNN) -> None:
        """Take the parts that fit; report.

        Raises:
            ConfigError: Nothing fits, a part is frozen that was not taken, or nothing is left to learn.
        """
        if self._source is None:
            return
        missed = {part: self._misfit(part, model, self._source) for part in _parts(model)}
        loaded = [part for part, reason in missed.items() if not reason]
        reasons = {part: reason for part, reason in missed.items() if reason}
        rates = {part: self.factor(part) for part in _parts(model)}
        self._check(reasons, loaded, rates)
        for part in loaded:
            _take(_parts(model)[part], _parts(self._source.model)[part])
        if model.hints is not None:
            model.hints.network.load_state_dict(self._source.model.state_dict())
        if is_first_process():
            self._note(self._source, loaded, reasons, rates)

    def rate(self, name: str) -> float:
        """Return the factor on the learning rate of a parameter; 0 where its part is frozen."""
        if name.startswith("hints.network."):
            return 0.0
        first, second = name.split(".")[:2]
        if first == "remedy":
            layer = REMEDIES[self._config.model.remedy].layer_of(name.removeprefix("remedy."))
            return self.factor("pool" if layer is None else f"convs.{layer}")
        numbered = {name: f"{name}.{second}" for name in LAYERS} | {"heads": f"heads.{second.removeprefix('y_')}"}
        return self.factor({**numbered, "edge_embed": "embed"}.get(first, first))

    def factor(self, part: str) -> float:
        """Return the factor on the learning rate of a part; 0 where it is frozen."""
        if any(_covers(name, part) for name in self.settings.freeze):
            return 0.0
        names = [name for name in self.settings.slow if _covers(name, part)]
        slow = self.settings.slow[max(names, key=len)] if names else 1.0
        return slow * self.settings.layer_decay ** _layers_above(part, self._config.model.depth)

    def set_training(self, model: CrystalGNN) -> None:
        """Put a network into training mode but for its frozen parts, whose running statistics stay."""
        model.train()
        for part, module in _parts(model).items():
            module.train(self.factor(part) > 0)

    def _misfit(self, part: str, model: CrystalGNN, source: _Source) -> str:
        """Return why a part of the network is not taken; an empty text if it is."""
        if not any(_covers(name, part) for name in self.settings.take):
            return "not asked for"
        if part not in _parts(source.model):
            return "the source has none"
        kind = part.partition(".")[0]
        here, there = (config.model.model_dump() for config in (self._config, source.info.config))
        differing = _differences(here, there, SETTINGS.get(kind, here.keys() - ELSEWHERE), "model.")
        if kind == "heads":
            name = part.removeprefix("heads.")
            mine, theirs = (net.head(name).target.model_dump() for net in (model, source.model))
            differing += _differences(mine, theirs, SAME_TARGET)
        return ", ".join(differing) or _other_shape(_parts(model)[part], _parts(source.model)[part])

    def _check(self, reasons: Mapping[str, str], loaded: list[str], rates: Mapping[str, float]) -> None:
        where = f"transfer.init_from: {self.settings.init_from}"
        if not loaded and not self.settings.hints:
            listed = "; ".join(f"{part}: {reason}" for part, reason in reasons.items())
            raise ConfigError(f"{where}: nothing of it fits this model: {listed}")
        for part, reason in reasons.items():
            if rates[part] == 0:
                raise ConfigError(f"transfer.freeze: {part} would stay as it was drawn, it is not taken: {reason}")
        if not any(rates.values()) and not self.settings.hints:
            raise ConfigError("transfer.freeze: everything is frozen and nothing is left to learn")

    def _note(self, source: _Source, loaded: list[str], reasons: Mapping[str, str], rates: Mapping[str, float]) -> None:
        frozen = [part for part, rate in rates.items() if rate == 0]
        report = {
            "init_from": self.settings.init_from,
            "checksum": source.checksum,
            "source": source.info.source,
            "loaded": loaded,
            "not_loaded": reasons,
            "frozen": frozen,
            "rates": rates,
            "hints": self._hints(),
        }
        write_json(self._report, report)
        changed = [f"{part} {rate:.3g}" for part, rate in rates.items() if rate not in (0, 1)]
        self._tell(f"transfer: from {self.settings.init_from}: {', '.join(loaded) or 'no part'}")
        for part, reason in reasons.items():
            self._tell(f"transfer: not loaded: {part} ({reason})")
        if frozen:
            self._tell(f"transfer: frozen: {', '.join(frozen)}")
        if self._hints():
            self._tell(f"transfer: hints of the source: {', '.join(self._hints())}")
        if changed:
            self._tell(f"transfer: factors on the learning rate: {', '.join(changed)}")

    def _hints(self) -> list[str]:
        """Return of which targets the source gives hints."""
        hints = self._config.model.hints
        return hints.names if hints else []


def with_hints(config: Config, folder: str | Path | None = None) -> Config:
    """Return settings whose network has room for the source where ``transfer.hints`` asks for it, else the same.

    Args:
        config: All settings.
        folder: Folder of a run; where it has begun, the source is not needed.

    Raises:
        ConfigError: The source has hints of its own, or no target of whole crystals.
        CheckpointError: The source is no model.
    """
    if config.transfer is None or not config.transfer.hints or config.model.hints is not None:
        return config
    begun = Path(folder) / "config.yaml" if folder is not None else None
    stored = load(begun) if begun is not None and begun.is_file() else None
    if stored is not None and stored.model.hints is not None and stored.transfer == config.transfer:
        hints = stored.model.hints
    else:
        source = _read(config.transfer.init_from).info.config
        where = f"transfer.hints: {config.transfer.init_from}"
        hints = build_as(HintsConfig, source.model_dump(mode="json", include={"model", "targets"}), source=where)
    return config.model_copy(update={"model": config.model.model_copy(update={"hints": hints})})


def _read(init_from: str) -> _Source:
    """Read the first member of a model."""
    found = model_file(Path(init_from).expanduser())
    stored = load_model(found)
    info = replace(stored.info, config=stored.info.config.of_member(0))
    with open(found, "rb") as handle:
        return _Source(stored.members[0], info, hashlib.file_digest(handle, "sha256").hexdigest())


def _noted(path: Path) -> str:
    """Return the checksum of the source of a run that has begun; an empty text where its report can't be read."""
    try:
        return str(orjson.loads(path.read_bytes())["checksum"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _parts(model: CrystalGNN) -> dict[str, nn.Module]:
    """Return the parts of a network that have tensors, by name; every tensor but those of hints is in one."""
    embed = [model.embed, *([model.edge_embed] if model.edge_embed is not None else [])]
    parts: dict[str, nn.Module | None] = {"embed": nn.ModuleList(embed)}
    # what a remedy has learned for a convolution is of use only with it
    parts |= {f"convs.{n}": _joined(conv, model.remedy.of_layer(n)) for n, conv in enumerate(model.convs)}
    parts |= {f"edge_updates.{n}": update for n, update in enumerate(model.edge_updates)}
    parts |= {"descriptors": model.descriptors, "pool": _joined(model.pool, model.remedy.of_all())}
    parts |= {f"heads.{target.name}": model.head(target.name) for target in model.targets}
    return {name: module for name, module in parts.items() if module is not None and module.state_dict()}


def _joined(module: nn.Module, others: list[nn.Module]) -> nn.Module:
    return nn.ModuleList([module, *others]) if others else module


def _covers(name: str, part: str) -> bool:
    return part == name or part.startswith(f"{name}.")


def _layers_above(part: str, depth: int) -> int:
    """Return how many layers a part lies below the pooling."""
    if part == "embed":
        return depth + 1
    name, _, layer = part.partition(".")
    return depth - int(layer) if name in LAYERS else 0


def _check_names(config: Config) -> None:
    assert config.transfer is not None
    layers = [f"{name}.{layer}" for name in LAYERS for layer in range(config.model.depth)]
    heads = [f"heads.{target.name}" for target in config.targets]
    known = ["embed", *LAYERS, *layers, "descriptors", "pool", "heads", *heads]
    lists: dict[str, Iterable[str]] = {key: getattr(config.transfer, key) for key in ("take", "freeze", "slow")}
    for key, names in lists.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"transfer.{key}: {unknown(name, known, 'part')}")


def _check_graphs(source: _Source, config: Config, init_from: str) -> None:
    here, there = (settings.graph.model_dump(exclude=LIMITS) for settings in (config, source.info.config))
    differing = _differences(here, there, here, "graph.")
    if differing:
        raise ConfigError(
            f"transfer.init_from: {init_from}: was trained on graphs of other settings: {', '.join(differing)}; "
            "use these, its weights know no others"
        )


def _differences(
    here: Mapping[str, Any], there: Mapping[str, Any], keys: Collection[str], prefix: str = ""
) -> list[str]:
    """Return which of some settings differ."""
    return [
        f"{prefix}{key} is {there[key]!r} there, {here[key]!r} here"
        for key in here
        if key in keys and here[key] != there[key]
    ]


def _other_shape(here: nn.Module, there: nn.Module) -> str:
    """Return the first tensor in which two parts differ; an empty text if there is none."""
    mine, theirs = ({name: tuple(t.shape) for name, t in part.state_dict().items()} for part in (here, there))
    for name in {**mine, **theirs}:
        if mine.get(name) != theirs.get(name):
            return f"{name} is {theirs.get(name, 'absent')} there, {mine.get(name, 'absent')} here"
    return ""


@torch.no_grad()
def _take(part: nn.Module, source: nn.Module) -> None:
    """Copy all tensors of a part; a head keeps its scaling and gets a last layer that gives the same values."""
    if not isinstance(part, Regression) or not isinstance(part.net, nn.Sequential):  # trees and kernels are fitted anew
        part.load_state_dict(source.state_dict())
        return
    mean, std = part.mean.clone(), part.std.clone()
    part.load_state_dict(source.state_dict())
    if torch.equal(part.mean, mean) and torch.equal(part.std, std):
        return
    last = part.net[-1]
    assert isinstance(last, nn.Linear)
    last.bias.copy_((part.std * last.bias + part.mean - mean) / std)
    last.weight.mul_(part.std / std)
    part.mean.copy_(mean)
    part.std.copy_(std)
