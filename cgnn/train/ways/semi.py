"""Learning from labelled and unlabelled crystals together: functions around `fit`, and all such ways by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cgnn.config import Config, build
from cgnn.data.dataset import CrystalDataset
from cgnn.errors import ConfigError
from cgnn.model import CrystalGNN
from cgnn.train.engine import reproducible
from cgnn.train.loop import Fitted, fit
from cgnn.train.method import Indices, Method, Step
from cgnn.train.state import data_key
from cgnn.train.ways.companions import Companions, check_apart, digest, only
from cgnn.train.ways.perturb import dropping, moved
from cgnn.train.ways.pretrain import Report, pretrain_denoising, pretrain_masked_elements
from cgnn.train.ways.pseudo import Labels, pseudo_labels, stored

PSEUDO_FILE = "pseudo.safetensors"


@dataclass(frozen=True)
class SelfTraining:
    """How networks teach others.

    Args:
        rounds: How often pseudo-labels are taken; after each a network is fitted anew.
        share: Share of the predictions that become pseudo-labels, the surest of each target.
        weight: Weight of the loss of pseudo-labels beside that of labels.
        members: Networks that teach together; they differ in the seed.
        ratio: Crystals with pseudo-labels for each labelled one in a batch.
        dropout: ``model.dropout`` of the students; None for that of the settings.
        noise: Atoms of the students' crystals are moved, as for `cgnn.train.ways.perturb.moved`.
    """

    rounds: int = 2
    share: float = 0.5
    weight: float = 0.5
    members: int = 1
    ratio: float = 1.0
    dropout: float | None = None
    noise: float = 0.0

    def check(self, config: Config) -> None:
        """Check the settings.

        Raises:
            ConfigError: One does not fit; names it.
        """
        if self.rounds < 1 or self.members < 1:
            raise ConfigError(f"rounds, members: expected at least 1, got {self.rounds} and {self.members}")
        if not (0 < self.share <= 1 and 0 < self.weight < 1):
            raise ConfigError(f"share, weight: expected above 0 and below 1, got {self.share} and {self.weight}")
        knows_doubt = config.model.spread or self.members > 1
        if not knows_doubt and any(target.task == "regression" for target in config.targets):
            raise ConfigError("self-training must know what is sure: set model.spread=true, or take members=3")


@dataclass(frozen=True)
class MeanTeacher:
    """How a network follows its own averaged copy.

    Args:
        weight: Weight of the difference between the two beside the loss; 0 is the plain way of learning.
        ramp: Share of all steps within which the weight rises.
        noise: Atoms of the student's crystals are moved, as for `cgnn.train.ways.perturb.moved`.
        dropout: Share of the student's first atom features that is dropped.
        ratio: Unlabelled crystals for each labelled one in a batch.
    """

    weight: float = 1.0
    ramp: float = 0.3
    noise: float = 0.01
    dropout: float = 0.05
    ratio: float = 1.0

    def check(self, config: Config) -> None:
        """Check the settings.

        Raises:
            ConfigError: One does not fit; names it.
        """
        if not config.train.ema > 0:
            raise ConfigError("train.ema: 0, but the averaged network is the teacher; set it to 0.99, for example")
        if not (self.weight >= 0 and 0 <= self.ramp <= 1 and self.noise >= 0 and 0 <= self.dropout < 1):
            raise ConfigError(f"mean teacher: a setting does not fit: {self}")


class PseudoLabels(Companions):
    """Learns from labels, and with less weight from pseudo-labels.

    Args:
        config: Settings of the fit.
        settings: How networks teach others.
        pool: Indices of the crystals with pseudo-labels.
        labels: The pseudo-labels.
    """

    def __init__(self, config: Config, settings: SelfTraining, pool: Indices, labels: Labels) -> None:
        super().__init__(config, pool, settings.ratio, f"pseudo-labels {settings} {digest(*labels.values())}")
        self.settings = settings

    def loss(self, step: Step) -> Tensor:
        """Return the loss of the labels and, with its weight, that of the values alone of the pseudo-labels."""
        batch = moved(step.batch, self.settings.noise)[0] if self.settings.noise else step.batch
        raw, model, companion = step.forward(batch), step.model, self.is_companion(step)
        true, pseudo = (only(batch, model.targets, keep) for keep in (~companion, companion))
        # `score`, not `loss`: how far labels stray can't be learned from what a network said itself
        return model.loss(raw, true, step.settings.loss) + self.settings.weight * model.score(
            raw, pseudo, step.settings.loss
        )


class Consistency(Companions):
    r"""Learns from labels, and to say of changed crystals what the averaged network says of unchanged ones.

    .. math:: L + \lambda\, e^{-5 (1 - \min(t / T, 1))^2}\, \mathrm{mean}\, D(p_\mathrm{student}, p_\mathrm{teacher})

    with the share t of the steps done. Probabilities are compared by their squared difference. Scaled values are not
    bounded, and far from the labels the two networks would carry each other away: they are compared by the Huber
    loss, and the teacher's are cut at three standard deviations of the labels.

    Source: Tarvainen and Valpola, Mean teachers are better role models, NIPS 2017, arXiv:1703.01780.

    Args:
        config: Settings of the fit.
        settings: Weight, change and number of unlabelled crystals.
        pool: Indices of the unlabelled crystals.
    """

    def __init__(self, config: Config, settings: MeanTeacher, pool: Indices) -> None:
        super().__init__(config, pool, settings.ratio, f"mean teacher {settings}")
        self.settings = settings

    def loss(self, step: Step) -> Tensor:
        """Return the loss of the labels and the weighted difference of the two networks on all crystals."""
        assert step.averaged is not None
        with torch.no_grad():
            taught = step.averaged.eval()(step.batch)
        with dropping(step.model.embed, self.settings.dropout):
            raw = step.forward(moved(step.batch, self.settings.noise)[0])
        difference = _difference(step.model, raw, taught)
        return step.model.loss(raw, step.batch, step.settings.loss) + self._weight(step.done) * difference

    def _weight(self, done: float) -> float:
        share = min(done / self.settings.ramp, 1.0) if self.settings.ramp else 1.0
        return self.settings.weight * math.exp(-5 * (1 - share) ** 2)


_PLAUSIBLE = 3.0
"""Scaled value beyond which a teacher is not followed."""

_DIFFERENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "regression": lambda said, taught: functional.huber_loss(
        said[:, 0], taught[:, 0].clamp(-_PLAUSIBLE, _PLAUSIBLE).to(said.dtype)
    ),
    "binary": lambda said, taught: (torch.sigmoid(said) - torch.sigmoid(taught)).square().mean(),
    "multiclass": lambda said, taught: (torch.softmax(said, 1) - torch.softmax(taught, 1)).square().mean(),
}
"""Task -> difference of the raw outputs of two networks."""


def _difference(model: CrystalGNN, raw: dict[str, Tensor], taught: dict[str, Tensor]) -> Tensor:
    differences = [
        target.weight * _DIFFERENCES[target.task](raw[target.name], taught[target.name]) for target in model.targets
    ]
    return torch.stack(differences).sum()


def mean_teacher(
    config: Config,
    dataset: CrystalDataset,
    parts: Mapping[str, Indices],
    unlabelled: Indices,
    folder: str | Path,
    resume: bool = False,
    report: Report | None = None,
    settings: MeanTeacher | None = None,
) -> Fitted:
    """Fit a network that also follows its own averaged copy on unlabelled crystals.

    Args:
        config: Settings of the fit.
        dataset: Crystals; labels of the unlabelled ones are not looked at.
        parts: Indices under ``train`` and ``val``.
        unlabelled: Indices of crystals that are in no part.
        folder: Run folder.
        resume: Go on from where an earlier call stopped.
        report: Called with each epoch's row of the history.
        settings: Weight, change and number of unlabelled crystals.

    Raises:
        ConfigError: There is no averaged network (``train.ema``), or a setting does not fit.
        DataError: An unlabelled crystal is in a part.
    """
    settings = settings or MeanTeacher()
    settings.check(config)
    check_apart(parts, unlabelled, dataset)
    method = Consistency(config, settings, unlabelled) if settings.weight else Method()
    return fit(config, dataset.hidden(unlabelled), dict(parts), folder, resume, report, method)


def self_training(
    config: Config,
    dataset: CrystalDataset,
    parts: Mapping[str, Indices],
    unlabelled: Indices,
    folder: str | Path,
    resume: bool = False,
    report: Report | None = None,
    settings: SelfTraining | None = None,
) -> Fitted:
    """Fit, take the surest predictions of unlabelled crystals as labels, and fit again; some rounds of it.

    Teachers and their pseudo-labels stand in ``round-0``, ``round-1``, ... below the run folder, which holds the last
    student.

    Source: Xie et al., Self-training with noisy student, CVPR 2020, arXiv:1911.04252; for labels that are numbers the
    surest share by the networks' own spread.

    Args:
        config: Settings of every fit.
        dataset: Crystals; labels of the unlabelled ones are not looked at.
        parts: Indices under ``train`` and ``val``.
        unlabelled: Indices of crystals that are in no part.
        folder: Run folder.
        resume: Go on from where an earlier call stopped.
        report: Called with each epoch's row of the history of each fit.
        settings: Rounds, teachers and students.

    Raises:
        ConfigError: A setting does not fit, or nothing tells how sure a prediction is.
        DataError: An unlabelled crystal is in a part.
        CheckpointError: The folder holds something begun with other settings or data.
    """
    settings = settings or SelfTraining()
    settings.check(config)
    check_apart(parts, unlabelled, dataset)
    bare = dataset.hidden(unlabelled)
    fitting: dict[str, Any] = {"parts": dict(parts), "resume": resume, "report": report}
    student, labelled, method = config, bare, Method()
    for number in range(settings.rounds):
        place = Path(folder) / f"round-{number}"
        teachers = [
            fit(_seeded(student, member), labelled, folder=place / f"member-{member}", method=method, **fitting).model
            for member in range(settings.members)
        ]
        key = data_key(bare, dict(parts), f"{method.key} {settings} {digest(unlabelled)}")

        def make(teachers: list[CrystalGNN] = teachers) -> tuple[Indices, Labels]:
            with reproducible(config.train):
                return pseudo_labels(teachers, bare, unlabelled, settings.share)

        pool, labels = stored(place / PSEUDO_FILE, key, make, resume)
        student, labelled = _noisy(config, settings.dropout), _joined(bare, labels)
        method = PseudoLabels(config, settings, pool, labels)
    return fit(student, labelled, folder=folder, method=method, **fitting)


def _joined(dataset: CrystalDataset, labels: Labels) -> CrystalDataset:
    """Return crystals with their own labels, and others where they have none."""
    own = {target.name: dataset.label(target) for target in dataset.targets}
    return dataset.relabelled({name: np.where(np.isnan(own[name]), labels[name], own[name]) for name in own})


def _seeded(config: Config, member: int) -> Config:
    """Return the settings of a member; the first one has those of the fit."""
    values = config.model_dump(mode="json")
    values["train"]["seed"] += 1000 * member  # not +1: runs of a study have neighbouring seeds
    return build(values)


def _noisy(config: Config, dropout: float | None) -> Config:
    values = config.model_dump(mode="json")
    values["model"]["dropout"] = config.model.dropout if dropout is None else dropout
    return build(values)


WAYS: dict[str, Callable[..., Fitted]] = {
    "self_training": self_training,
    "mean_teacher": mean_teacher,
    "denoising": pretrain_denoising,
    "masked_elements": pretrain_masked_elements,
}
"""Ways of learning from unlabelled crystals: ``(config, dataset, parts, unlabelled, folder, resume, report)``; the last
two learn from the crystals alone and leave a model to start from."""
