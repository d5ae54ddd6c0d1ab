"""Members of an ensemble fitted at once: their parameters stand in one tensor each, their batches are shared.

A GPU is idle for most of a step of a small network; the same step for several networks takes little longer. What a
member learns is what it would learn alone, but for rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from cgnn.config import Config
from cgnn.data.dataset import by_edges
from cgnn.errors import ConfigError, NumericsError, Stopped, choose
from cgnn.files import write_bytes
from cgnn.model import CrystalGNN
from cgnn.train.checkpoint import MODEL_FILE, save_model
from cgnn.train.engine import Stop, deferred_signals, engine, kept_memory, reproducible, seed
from cgnn.train.ensembles.member import Member
from cgnn.train.ensembles.side_by_side import Group, one_by_one
from cgnn.train.ensembles.stacked import Stacked
from cgnn.train.loop import SCHEDULES, Average, Indices, model_info, order, validation_row
from cgnn.train.metrics import Baseline
from cgnn.train.state import Progress, State, data_key

STACKABLE = frozenset({"none", "residual", "identity_skip", "layer_scale"})
"""Remedies of networks that can be fitted at once: those that draw nothing and look at one atom at a time."""


def can_batch(config: Config) -> bool:
    """Tell whether members of these settings can be fitted at once; of several forms, those of one at least."""
    settings = config.train
    if settings.compile or settings.tensorboard or config.transfer or settings.devices > 1:
        return False
    turns = len(config.ensemble.models) if config.ensemble else 1
    models = [config.of_member(number).model for number in range(turns)]
    return any(model.remedy in STACKABLE and model.head == "layers" for model in models)


def fit_batched(group: Group) -> None:
    """Fit members over shared batches; go on where they stand.

    One state for all lies in ``last/`` beside the members' folders. Where members are of several forms
    (``ensemble.models``), those of each form are fitted at once, with a state in ``form-0/last/``, ``form-1/last/``,
    and those of forms that can't be, such as trees, one by one.

    Raises:
        ConfigError: The settings ask for what only single networks have.
        NumericsError: The loss or a gradient of a member became NaN or infinite.
        CheckpointError: The state belongs to other settings or data.
        Stopped: SIGINT or SIGTERM arrived; the state was saved.
    """
    if not can_batch(group.config):
        raise ConfigError(
            "transfer, most of model.remedy, model.head, train.compile, train.tensorboard, train.devices: "
            "not for members fitted at once (batched)"
        )
    for alike in _of_one_form(group):
        if not can_batch(alike.config):
            one_by_one(alike)
            continue
        with reproducible(group.config.train), kept_memory(), deferred_signals() as stop:
            session = _Session(alike, stop)
            session.progress = session.state.restore(session.folder)  # type: ignore[assignment]
            session.run()


def _of_one_form(group: Group) -> list[Group]:
    """Divide members into groups of the same settings each."""
    if group.config.ensemble is None:
        return [group]
    members: dict[str, list[Member]] = {}
    configs: dict[str, Config] = {}
    for member in group.members:
        config = group.config_of(member)
        form = config.model.model_dump_json()
        configs[form] = config
        members.setdefault(form, []).append(member)
    return [
        replace(group, config=configs[form], members=tuple(alike), shared=f"{group.shared}form-{number}")
        for number, (form, alike) in enumerate(members.items())
    ]


@dataclass
class _Standing:
    """Where one member stands."""

    loss_sum: float = 0.0
    best_score: float = math.inf
    best_epoch: int = -1
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _AllProgress(Progress):
    """Where all members stand: what they share, and a mapping of `_Standing` for each."""

    members: list[dict[str, Any]] = field(default_factory=list)


class _Session:
    def __init__(self, group: Group, stop: Stop) -> None:
        self.group, self.stop, self.settings = group, stop, group.config.train
        self.folder = group.folder / group.shared
        self.fabric = engine(self.settings)
        self.device = self.fabric.device
        group.dataset.to(self.device)
        self.baselines = {
            target.name: Baseline.fit(target, group.dataset.label(target, group.parts["train"]))
            for target in group.config.targets
        }
        self.stacked = Stacked([self._begun(member) for member in group.members])
        self.module = self.stacked.module
        self.optimizer = self._optimizer()
        self.parameters = list(self.module.parameters())
        self.ema = AveragedModel(self.module, use_buffers=True) if self.settings.ema else None
        self.average = Average(self.ema, self.module, self.settings.ema) if self.ema is not None else None
        self.counts = self._counts()
        modules: dict[str, nn.Module] = {"model": self.module} | ({"ema": self.ema} if self.ema is not None else {})
        key = data_key(group.dataset, group.parts, " ".join(member.key for member in group.members))
        self.state = State(modules, self.optimizer, group.config, key, _AllProgress)
        self.progress = _AllProgress()
        self.steps = math.ceil(len(group.parts["train"]) / self.settings.batch_size)

    def _begun(self, member: Any) -> CrystalGNN:
        """Return a member before its first step, as `cgnn.train.loop.fit` begins it."""
        model = CrystalGNN(self.group.config.model, self.group.config.targets)
        for target in self.group.config.targets:
            model.head(target.name).fit_scaling(self.group.dataset.label(target, self.group.parts["train"]))
        member.begin(model)
        return model.to(self.device, torch.float64 if self.settings.precision == "64-true" else torch.float32)

    def _optimizer(self) -> torch.optim.Optimizer:
        matrices = self.stacked.matrices()
        named = list(self.module.named_parameters())
        groups = [
            {"params": [p for name, p in named if name in matrices], "weight_decay": self.settings.weight_decay},
            {"params": [p for name, p in named if name not in matrices], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.settings.learning_rate, fused=True)

    def _counts(self) -> Tensor | None:
        """Return how much each crystal counts for each member (M, n); None where all count the same."""
        given = [member.counts for member in self.group.members]
        if all(counts is None for counts in given):
            return None
        ones = np.ones(len(self.group.dataset), np.float32)
        whole = np.stack([ones if counts is None else counts for counts in given])
        return torch.from_numpy(whole).to(self.device)

    @property
    def evaluated(self) -> nn.Module:
        return self.ema.module if self.ema is not None else self.module

    def run(self) -> None:
        progress = self.progress
        if not progress.members:
            progress.members = [vars(_Standing()) for _ in self.group.members]
        while not progress.finished:
            started = time.perf_counter()
            self._epoch()
            self._end_of_epoch(time.perf_counter() - started)

    def _epoch(self) -> None:
        self.stacked.template.train()
        crystals = order(self.group.parts["train"], self.settings.seed, self.progress.epoch)
        while self.progress.step < self.steps:
            if self.stop.number:
                self.save()
                raise Stopped(self.stop.number)
            start = self.progress.step * self.settings.batch_size
            self._step(crystals[start : start + self.settings.batch_size])
            self.progress.step += 1
            every = self.settings.checkpoint_every
            if every and self.progress.step % every == 0 and self.progress.step < self.steps:
                self.save()

    def _step(self, indices: Indices) -> None:
        progress = self.progress
        share = (progress.epoch * self.steps + progress.step) / (self.settings.epochs * self.steps)
        rate = self.settings.learning_rate * choose(SCHEDULES, self.settings.schedule, "schedule")(share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed(self.settings.seed, "step", progress.epoch, progress.step, 0)
        losses = self._losses(indices)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        norms = self._clip()
        found = torch.stack([losses.detach().double(), norms.double()]).tolist()
        self._check(found, indices)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        for standing, loss in zip(progress.members, found[0], strict=True):
            standing["loss_sum"] += loss * len(indices)
        progress.loss_count += len(indices)

    def _losses(self, indices: Indices) -> Tensor:
        """Return the loss of each member (M,) on a batch of crystals."""
        batch = self.group.dataset.batch(indices).to(self.device)
        weights = None if self.counts is None else self.counts[:, torch.from_numpy(indices).to(self.device)]
        template, loss = self.stacked.template, self.settings.loss

        def of_one(tensors: Mapping[str, Tensor], drawn: Tensor | None) -> Tensor:
            raw = functional_call(template, dict(tensors), (batch,))
            return template.loss({name: _full(values) for name, values in raw.items()}, batch, loss, drawn)

        with self.fabric.autocast():
            losses: Tensor = self.stacked.over(of_one, self.module, weights)
        return losses

    def _clip(self) -> Tensor:
        """Clip each member's gradient to its largest norm; return the norms (M,)."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        if self.settings.clip:
            factors = (self.settings.clip / (norms + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(factors.reshape(-1, *[1] * (gradient.ndim - 1)))
        return norms

    def _check(self, found: list[list[float]], indices: Indices) -> None:
        for what, values in zip(("loss", "gradient"), found, strict=True):
            for member, value in zip(self.group.members, values, strict=True):
                if not math.isfinite(value):
                    ids = ", ".join(self.group.dataset.ids[index] for index in indices[:100])
                    raise NumericsError(
                        f"member {member.number}: the {what} became {value} in epoch {self.progress.epoch + 1}, step "
                        f"{self.progress.step + 1}; the last state before it is kept; crystals of the batch: {ids}"
                    )

    def _end_of_epoch(self, seconds: float) -> None:
        progress = self.progress
        shared = {
            "epoch": progress.epoch + 1,
            "seconds": seconds,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        scores = self._validate()
        for number, standing in enumerate(progress.members):
            if not standing["finished"]:
                self._note(number, standing, {**shared, **scores[number]})
            standing["loss_sum"] = 0.0
        progress.epoch, progress.step, progress.loss_count = progress.epoch + 1, 0, 0
        progress.finished = all(standing["finished"] for standing in progress.members)
        progress.history.append({"epoch": progress.epoch, "seconds": seconds})
        self.save()

    def _note(self, number: int, standing: dict[str, Any], scores: dict[str, float]) -> None:
        """Note the end of an epoch of one member; save its network if it is the best so far."""
        row = {**scores, "train_loss": standing["loss_sum"] / self.progress.loss_count}
        standing["history"].append(row)
        if "val_score" not in row or row["val_score"] < standing["best_score"]:
            standing["best_score"] = row.get("val_score", math.inf)
            standing["best_epoch"] = self.progress.epoch
            member, group = self.group.members[number], self.group
            info = model_info(group.config, group.dataset, group.parts_of(member), self.baselines, row, member)
            save_model(self._place(number) / "best" / MODEL_FILE, [self.stacked.member(self.evaluated, number)], info)
        patience = self.settings.patience
        is_out = patience is not None and self.progress.epoch - standing["best_epoch"] >= patience
        standing["finished"] = self.progress.epoch + 1 >= self.settings.epochs or is_out
        if self.group.report:
            self.group.report(self.group.members[number].number)(row)

    @torch.no_grad()
    def _validate(self) -> list[dict[str, float]]:
        """Return what the validation part adds to the row of each member."""
        indices = self.group.parts["val"]
        if not len(indices):
            return [{} for _ in self.group.members]
        self.stacked.template.eval()
        targets = self.group.config.targets
        parts = []
        for part in by_edges(self.group.dataset, indices):
            batch = self.group.dataset.batch(part).to(self.device)
            with self.fabric.autocast():
                parts.append(self.stacked.outputs(self.evaluated, batch))
        raw = {t.name: _full(torch.cat([part[t.name] for part in parts], dim=1)) for t in targets}
        labels = {target.name: self.group.dataset.label(target, indices) for target in targets}
        return [
            validation_row(
                self.stacked.template,
                {name: values[number][rows] for name, values in raw.items()},
                {name: values[rows] for name, values in labels.items()},
                self.settings.loss,
                self.baselines,
            )
            for number, rows in enumerate(map(self._own_rows, self.group.members))
        ]

    def _own_rows(self, member: Member) -> Any:
        """Return the rows of the validation part that are a member's own; a slice for all of them."""
        if member.parts is None:
            return slice(None)
        return np.flatnonzero(np.isin(self.group.parts["val"], member.parts["val"]))

    def _place(self, number: int) -> Path:
        return self.group.folder / str(self.group.members[number].number)

    def save(self) -> None:
        for number, standing in enumerate(self.progress.members):
            rows = b"".join(orjson.dumps(row) + b"\n" for row in standing["history"])
            write_bytes(self._place(number) / "history.jsonl", rows)
        self.state.save(self.folder, self.progress)


def _full(values: Tensor) -> Tensor:
    """Return numbers of half precision as single ones, in which losses are taken."""
    return values.float() if values.dtype == torch.bfloat16 else values
