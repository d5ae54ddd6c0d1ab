"""Fitting a network: one explicit loop that can be killed at any moment and resumed bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cgnn.config import Config, TrainConfig
from cgnn.data.dataset import CrystalDataset, by_edges
from cgnn.data.mp import provenance
from cgnn.errors import NumericsError, Stopped, choose
from cgnn.model import CrystalGNN
from cgnn.model.network import raw_outputs
from cgnn.train.at_once import check, fit_at_once
from cgnn.train.checkpoint import MODEL_FILE, ModelInfo, load_model, save_model
from cgnn.train.engine import Stop, deferred_signals, engine, kept_memory, reproducible, seed, tensorboard
from cgnn.train.method import Indices, Method, Step
from cgnn.train.metrics import Baseline, evaluate
from cgnn.train.state import Progress, State, data_key


def _one_cycle(progress: float) -> float:
    """Rise for a quarter of the steps from 1/25 to 1, then fall along a cosine to 1e-4."""
    if progress < 0.25:
        return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * progress / 0.25)) / 2
    return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (progress - 0.25) / 0.75)) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one_cycle": _one_cycle,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress: 1.0,
}
"""Share of all steps done -> factor on the learning rate. Functions of the step alone, so that a resumed run
needs no state of them."""

SAVE_EVERY = 1.0
"""Seconds: epochs that are shorter share a checkpoint, unless ``train.checkpoint_every`` asks for more."""


@dataclass(frozen=True)
class Fitted:
    """What `fit` leaves behind.

    Args:
        model: The network of the best epoch, in evaluation mode.
        info: What travels with it.
        history: A row per epoch.
    """

    model: CrystalGNN
    info: ModelInfo
    history: list[dict[str, float]]


def fit(
    config: Config,
    dataset: CrystalDataset,
    parts: dict[str, Indices],
    folder: str | Path,
    resume: bool = False,
    report: Callable[[dict[str, float]], None] | None = None,
    method: Method | None = None,
) -> Fitted:
    """Fit a network and leave ``history.jsonl``, ``last/`` and ``best/`` in a folder.

    The order of crystals and the random numbers of a step depend on (seed, epoch, step) only. A run that was
    killed at any moment and resumed with as many threads ends with the same bits as one that was not.

    Args:
        config: All settings.
        dataset: Crystals with labels.
        parts: Indices into the data set under ``train`` and ``val`` (may be empty); only these are looked at.
        folder: Run folder.
        resume: Go on from ``last/`` where there is one.
        report: Called with each epoch's row of the history.
        method: What a way of learning changes; by default nothing.

    Raises:
        NumericsError: The loss or a gradient became NaN or infinite; names the crystals of the batch.
        CheckpointError: ``last/`` belongs to other settings or data.
        Stopped: SIGINT or SIGTERM arrived; the state was saved.
    """
    with reproducible(config.train), kept_memory(), deferred_signals() as stop:
        session = _Session(config, dataset, parts, Path(folder), stop, method or Method())
        if resume:
            session.progress = session.state.restore(session.folder)
        session.run(report)
        return session.result()


class _Session:
    def __init__(
        self,
        config: Config,
        dataset: CrystalDataset,
        parts: dict[str, Indices],
        folder: Path,
        stop: Stop,
        method: Method,
    ) -> None:
        self.config, self.dataset, self.parts, self.folder, self.stop = config, dataset, parts, folder, stop
        self.settings, self.method = config.train, method
        self.is_fitted_at_once = config.model.is_fitted_at_once
        if self.is_fitted_at_once:
            check(config, method)
        self.fabric = engine(self.settings)
        dataset.to(self.fabric.device)
        self.progress = Progress()
        self.saved = -math.inf
        self.batch_size = self.settings.batch_size
        self.steps = math.ceil(len(parts["train"]) / self.batch_size)
        seed(self.settings.seed, "weights")
        self.model = CrystalGNN(config.model, config.targets)
        for target in config.targets:
            self.model.head(target.name).fit_scaling(dataset.label(target, parts["train"]))
        method.begin(self.model)
        extra = method.extra()
        self.optimizer = _optimizer(self.model, extra, self.settings, method)
        is_compiled = self.settings.compile and not self.is_fitted_at_once
        network = torch.compile(self.model, dynamic=True) if is_compiled else self.model
        self.wrapped, self.optimizer = self.fabric.setup(network, self.optimizer)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ema = (
            AveragedModel(self.model, use_buffers=True) if self.settings.ema and not self.is_fitted_at_once else None
        )
        self.average = Average(self.ema, self.model, self.settings.ema) if self.ema is not None else None
        modules: dict[str, nn.Module] = {"model": self.model} | ({"ema": self.ema} if self.ema is not None else {})
        if extra is not None:
            modules["method"] = extra.to(self.fabric.device, next(self.model.parameters()).dtype)
        self.state = State(modules, self.optimizer, config, data_key(dataset, parts, method.key))
        self.baselines = {
            target.name: Baseline.fit(target, dataset.label(target, parts["train"]))
            for target in config.targets
            if method.uses_labels
        }
        self.logger = tensorboard(folder) if self.settings.tensorboard else None

    @property
    def evaluated(self) -> CrystalGNN:
        """The network that predicts: with averaged weights where there are such."""
        return self.ema.module if self.ema is not None else self.model  # type: ignore[return-value]

    def run(self, report: Callable[[dict[str, float]], None] | None) -> None:
        while not self.progress.finished:
            started = time.perf_counter()
            self._epoch()
            row = self._end_of_epoch(time.perf_counter() - started)
            if report and self.fabric.is_global_zero:
                report(row)

    def _epoch(self) -> None:
        if self.is_fitted_at_once:
            self._fit_at_once()
            return
        self.method.set_training(self.model)
        crystals = order(self.parts["train"], self.settings.seed, self.progress.epoch)
        while self.progress.step < self.steps:
            if self.stop.number:
                self.save()
                raise Stopped(self.stop.number)
            start = self.progress.step * self.batch_size
            self._step(crystals[start : start + self.batch_size])
            self.progress.step += 1
            every = self.settings.checkpoint_every
            if every and self.progress.step % every == 0 and self.progress.step < self.steps:
                self.save()

    def _fit_at_once(self) -> None:
        indices = self.parts["train"]
        raw = fit_at_once(self.model, self.dataset, indices, self.method, self.config)
        labels = {target.name: self.dataset.label(target, indices) for target in self.config.targets}
        self.progress.loss_sum = float(self.model.score(raw, _LabelView(labels, raw), self.settings.loss))
        self.progress.loss_count = 1

    def _step(self, indices: Indices) -> None:
        done = self.progress.epoch * self.steps + self.progress.step
        share = done / (self.settings.epochs * self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._schedule(share) * group["factor"]
        seed(self.settings.seed, "step", self.progress.epoch, self.progress.step, self.fabric.global_rank)
        mine = self._share(self.method.draw(indices, self.progress.epoch, self.progress.step))
        batch = self.dataset.batch(mine).to(self.fabric.device)
        averaged = self.evaluated if self.ema is not None else None
        loss = self.method.loss(Step(self.model, self.wrapped, averaged, batch, self.settings, share, mine))
        self.fabric.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf)
        found = torch.stack([loss.detach(), norm]).tolist()  # the one time in a step that the device is waited for
        self._check(dict(zip(("loss", "gradient"), found, strict=True)), mine)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        self.progress.loss_sum += found[0] * len(indices)
        self.progress.loss_count += len(indices)

    @property
    def _schedule(self) -> Callable[[float], float]:
        return choose(SCHEDULES, self.settings.schedule, "schedule")

    def _share(self, indices: Indices) -> Indices:
        """Return this process's part of a batch; a batch smaller than the number of processes is repeated."""
        world = self.fabric.world_size
        return np.resize(indices, max(len(indices), world))[self.fabric.global_rank :: world]

    def _check(self, values: dict[str, float], indices: Indices) -> None:
        for what, value in values.items():
            if not math.isfinite(value):
                ids = ", ".join(self.dataset.ids[index] for index in indices[:100])
                raise NumericsError(
                    f"the {what} became {value} in epoch {self.progress.epoch + 1}, step "
                    f"{self.progress.step + 1}; the last state before it is kept; crystals of the batch: {ids}"
                )

    def _end_of_epoch(self, seconds: float) -> dict[str, float]:
        progress = self.progress
        row = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / progress.loss_count,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            **self._validate(),
        }
        row = self.fabric.broadcast(row)  # all processes must agree on what is best and when to stop
        progress.history.append(row)
        improved = row.get("val_score", -math.inf) < progress.best_score or "val_score" not in row
        if improved:
            progress.best_score = row.get("val_score", math.inf)
            progress.best_epoch = progress.epoch
        progress.epoch, progress.step, progress.loss_sum, progress.loss_count = progress.epoch + 1, 0, 0.0, 0
        progress.finished = self.is_fitted_at_once or progress.epoch >= self.settings.epochs or self._out_of_patience()
        is_due = progress.finished or self.settings.checkpoint_every or time.monotonic() - self.saved >= SAVE_EVERY
        # without a validation part every epoch is the best so far, and its network is due when the state is
        if improved and (is_due or "val_score" in row):
            self._save_best(row)
        if is_due:
            self.save()
        self._log(row)
        return row

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.progress.epoch - 1 - self.progress.best_epoch >= patience

    def _validate(self) -> dict[str, float]:
        indices = self.parts["val"]
        if not len(indices):
            return {}
        model = self.evaluated.eval()
        batches = (self.dataset.batch(part).to(self.fabric.device) for part in by_edges(self.dataset, indices))
        own = self.method.validate(model, batches)
        if own is not None:
            return own
        raw = raw_outputs(model, batches)
        # by_edges keeps the order, so the outputs stand as the labels do.
        labels = {target.name: self.dataset.label(target, indices) for target in self.config.targets}
        return validation_row(model, raw, labels, self.settings.loss, self.baselines)

    def _save_best(self, row: dict[str, float]) -> None:
        if self.fabric.is_global_zero:
            info = model_info(self.config, self.dataset, self.parts, self.baselines, row, self.method)
            save_model(self.folder / "best" / MODEL_FILE, [self.evaluated], info)

    def save(self) -> None:
        if self.fabric.is_global_zero:
            self.state.save(self.folder, self.progress)
        self.saved = time.monotonic()

    def _log(self, row: dict[str, float]) -> None:
        if self.logger and self.fabric.is_global_zero:
            for name, value in row.items():
                self.logger.add_scalar(name, value, row["epoch"])
            self.logger.flush()

    def result(self) -> Fitted:
        self.fabric.barrier()
        stored = load_model(self.folder / "best" / MODEL_FILE)
        return Fitted(stored.members[0], stored.info, self.progress.history)


def validation_row(
    model: CrystalGNN,
    raw: dict[str, Tensor],
    labels: dict[str, NDArray[np.float64]],
    loss: str,
    baselines: dict[str, Baseline],
) -> dict[str, float]:
    """Return the entries of a history's row that the raw outputs of the validation part give."""
    score = model.score(raw, _LabelView(labels, raw), loss)
    predicted = {name: value.cpu().numpy() for name, value in model.decode(raw).items()}
    metrics = evaluate(model.targets, labels, predicted, baselines)
    row = {"val_score": float(score)}
    for name, scores in metrics.items():
        row |= {f"val_{name}_{key}": float(v) for key, v in scores.items() if in_history(key)}
    return row


def model_info(
    config: Config,
    dataset: CrystalDataset,
    parts: dict[str, Indices],
    baselines: dict[str, Baseline],
    row: dict[str, float],
    method: Method,
) -> ModelInfo:
    """Return what travels with the weights of an epoch, of which the history's row is given."""
    summary: dict[str, Any] = {key: value for key, value in row.items() if key != "seconds"}
    summary |= {part: len(indices) for part, indices in parts.items()}
    summary["threads"] = torch.get_num_threads()
    return ModelInfo(
        config=config.alone,
        elements=tuple(sorted(dataset.elements(parts["train"]))),
        baselines={name: baseline.to_dict() for name, baseline in baselines.items()},
        summary=summary,
        source={**provenance(*config.data.paths), **method.source},
    )


class _LabelView:
    """Labels as the loss wants them: by field name, as tensors on the device of the outputs."""

    def __init__(self, labels: dict[str, NDArray[np.float64]], raw: dict[str, Tensor]) -> None:
        self._labels = {f"y_{name}": torch.from_numpy(values).to(raw[name].device) for name, values in labels.items()}
        self.z = next(iter(self._labels.values()))

    def __getitem__(self, name: str) -> Tensor:
        return self._labels[name]


def in_history(key: str) -> bool:
    """Tell whether a score stands in the rows of a history."""
    return key not in ("n",) and not key.startswith("baseline")


class Average:
    """Exponential average of a network's weights, with less memory in the first steps.

    The update is done here and not by `AveragedModel.update_parameters`, which walks through the modules anew
    at every step.
    """

    def __init__(self, averaged: AveragedModel, model: nn.Module, decay: float) -> None:
        self.steps, self.decay = averaged.n_averaged, decay
        pairs = list(zip(_tensors(averaged.module), _tensors(model), strict=True))
        self.floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averaged weights towards the present ones."""
        count = int(self.steps)
        share = 1.0 if count == 0 else 1 - min(self.decay, (1 + count) / (10 + count))
        torch._foreach_lerp_([old for old, _ in self.floating], [new for _, new in self.floating], share)
        for old, new in self.counts:
            old.copy_(new)
        self.steps += 1


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def order(indices: Indices, seed: int, epoch: int) -> Indices:
    """Return the order of crystals in an epoch, a function of seed and epoch only."""
    return np.random.default_rng([seed, epoch]).permutation(indices)


def _optimizer(
    model: CrystalGNN, extra: nn.Module | None, settings: TrainConfig, method: Method
) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on matrices only, not on biases and normalisations; rates by the method."""
    named = [(parameter, method.rate(name)) for name, parameter in model.named_parameters()]
    named += [(parameter, 1.0) for parameter in extra.parameters()] if extra is not None else []
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, factor in named:
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    # the order of groups names the optimizer's state in a checkpoint: matrices first, as it always was
    ordered = sorted(groups.items(), key=lambda item: (-item[0][0], not item[0][1]))
    return torch.optim.AdamW(
        [
            {"params": params, "weight_decay": settings.weight_decay if is_matrix else 0.0, "factor": factor}
            for (factor, is_matrix), params in ordered
        ],
        lr=settings.learning_rate,
        fused=True,
    )
