"""Where the time of an epoch goes, measured on the real loop.

The loop of `cgnn.train.loop` runs as it is, on the first batches of the training part; clocks are hung around the
pieces it calls, and taken off afterwards. Nothing of the loop is written a second time here.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import Watch, prepare
from cgnn.data.split import split
from cgnn.errors import ConfigError
from cgnn.model import CrystalGNN
from cgnn.train import loop
from cgnn.train.loop import Indices, fit

REST = "rest of the loop"
EDGES = "edge features"
PER_EPOCH = ("validation", "checkpoint")
"""Parts that come once in an epoch, whatever the number of steps; what they call counts as theirs."""


@dataclass(frozen=True)
class Part:
    """One line of a profile.

    Args:
        name: Of the part.
        step: Milliseconds per step; for the parts of `PER_EPOCH` spread over the steps of a whole epoch.
        epoch: Seconds per epoch of the whole training part.
        share: Share of the epoch, 0 to 1.
    """

    name: str
    step: float
    epoch: float
    share: float


def profile(
    config: Config, dataset: CrystalDataset, parts: dict[str, Indices], steps: int = 20, trace: Path | None = None
) -> list[Part]:
    """Return the parts of an epoch in the order in which they come.

    One epoch of the given number of steps warms up, a second one is measured. A part does not contain what is
    counted under another name, so the shares add up to one.

    Args:
        config: All settings.
        dataset: Crystals with labels.
        parts: Indices into the data set under ``train`` and ``val``.
        steps: Steps to measure.
        trace: File for a Chrome trace of one epoch more, under ``torch.profiler``.

    Raises:
        ConfigError: There is not a single step to measure, or the network is to be compiled.
    """
    if steps < 1:
        raise ConfigError(f"steps: expected at least 1, got {steps}")
    if config.train.compile:
        raise ConfigError("train.compile: the parts of a compiled network can't be told apart; profile without it")
    size = config.train.batch_size
    whole = math.ceil(len(parts["train"]) / size)
    measured = {**parts, "train": parts["train"][: steps * size]}
    steps = min(steps, whole)
    training = config.train.model_copy(update={"epochs": 3 if trace else 2, "patience": None})
    config = config.model_copy(update={"train": training})
    clock, tracer, found = _Clock(config), _Tracer(trace), dict[str, float]()

    def end_of_epoch(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            found.update(clock.read())
            tracer.start()
        clock.reset()

    with tempfile.TemporaryDirectory() as folder, _hung(clock), tracer:
        fit(config, dataset, measured, folder, report=end_of_epoch)
    return _parts(found, steps, whole)


def profile_run(config: Config, steps: int = 20, trace: Path | None = None, watch: Watch | None = None) -> list[Part]:
    """Return the profile of the run that ``cgnn train`` would begin with these settings.

    Args:
        config: All settings.
        steps: As for `profile`.
        trace: As for `profile`.
        watch: Wraps the stream of crystals while graphs are built, to show progress.

    Raises:
        ConfigError: No data is given, or there is not a single step to measure.
        DataError: The data can't be used.
    """
    if not config.data.path:
        raise ConfigError("data.path: not set; give the file, for example -o data.path=export.json.gz")
    dataset = CrystalDataset(prepare(config.data, config.graph, watch), config.targets)
    parts = split(config.data.split, dataset.summaries())
    indices = {part: dataset.indices(getattr(parts, part)) for part in ("train", "val")}
    return profile(config, dataset, indices, steps, trace)


def to_text(parts: list[Part]) -> str:
    """Return a profile as a table for people."""
    lines = [f"{'part':<20} {'ms per step':>12} {'s per epoch':>12} {'share':>7}"]
    lines += [f"{part.name:<20} {part.step:12.3f} {part.epoch:12.3f} {part.share:7.1%}" for part in parts]
    step, epoch = sum(part.step for part in parts), sum(part.epoch for part in parts)
    return "\n".join([*lines, f"{'total':<20} {step:12.3f} {epoch:12.3f} {1:7.1%}"])


def _parts(found: dict[str, float], steps: int, whole: int) -> list[Part]:
    epochs = {name: seconds * (1 if name in PER_EPOCH else whole / steps) for name, seconds in found.items()}
    total = sum(epochs.values())
    last = [REST, *PER_EPOCH]
    names = sorted(epochs, key=lambda name: last.index(name) if name in last else -1)
    return [Part(name, 1000 * epochs[name] / whole, epochs[name], epochs[name] / total) for name in names]


class _Clock:
    """Seconds by part; of nested parts the innermost one's time counts."""

    def __init__(self, config: Config) -> None:
        self._waits = torch.cuda.is_available() and config.train.device != "cpu"
        self._open = [REST]
        self.reset()

    def reset(self) -> None:
        self._seconds: dict[str, float] = {}
        self._since = self._now()

    def read(self) -> dict[str, float]:
        self._charge()
        return dict(self._seconds)

    def start(self, part: str) -> None:
        self._charge()
        self._open.append(self._open[-1] if self._open[-1] in PER_EPOCH else part)

    def stop(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = self._now()
        self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def _now(self) -> float:
        if self._waits:
            torch.cuda.synchronize()  # what was started on the device belongs to the part that started it
        return time.perf_counter()


class _Tracer:
    """A Chrome trace from `start` to the end of the context; nothing without a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._profiler: Any = None

    def start(self) -> None:
        if self._path is not None:
            self._profiler = torch.profiler.profile()
            self._profiler.start()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler.export_chrome_trace(str(self._path))


@contextmanager
def _hung(clock: _Clock) -> Iterator[None]:
    """Hang clocks around everything that a step and the end of an epoch call."""
    from lightning.fabric import Fabric
    from lightning.fabric.wrappers import _FabricOptimizer

    pieces: list[tuple[Any, str, str]] = [
        (CrystalDataset, "batch", "batch"),
        (CrystalGNN, "loss", "loss"),
        (Fabric, "backward", "backward"),
        (torch.nn.utils, "clip_grad_norm_", "gradient clipping"),
        (_FabricOptimizer, "step", "optimizer"),
        (loop.Average, "update", "averaged weights"),
        (loop._Session, "_validate", "validation"),
        (loop._Session, "_save_best", "checkpoint"),
        (loop._Session, "save", "checkpoint"),
    ]
    with ExitStack() as stack:
        for owner, name, part in pieces:
            stack.enter_context(_timed(clock, owner, name, part))
        parts: dict[torch.nn.Module, str] = {}
        before = register_module_forward_pre_hook(lambda module, inputs: _enter(clock, parts, module))
        stack.callback(before.remove)
        after = register_module_forward_hook(lambda module, inputs, output: _leave(clock, parts, module))
        stack.callback(after.remove)
        yield


@contextmanager
def _timed(clock: _Clock, owner: Any, name: str, part: str) -> Iterator[None]:
    plain: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        clock.start(part)
        try:
            return plain(*arguments, **named)
        finally:
            clock.stop()

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def _enter(clock: _Clock, parts: dict[torch.nn.Module, str], module: torch.nn.Module) -> None:
    if isinstance(module, CrystalGNN) and module not in parts:
        parts.update(_named(module))
    if module in parts:
        clock.start(parts[module])


def _leave(clock: _Clock, parts: dict[torch.nn.Module, str], module: torch.nn.Module) -> None:
    if module in parts:
        clock.stop()


def _named(model: CrystalGNN) -> dict[torch.nn.Module, str]:
    """Return the part of a forward pass that each module makes; what none of them makes are the edges' features."""
    convolutions = {conv: f"convolution {number}" for number, conv in enumerate(model.convs, 1)}
    heads = dict.fromkeys(model.heads.values(), "heads")
    return {model: EDGES, model.embed: "embedding", **convolutions, model.pool: "pooling", **heads}
