"""Ways of learning from positive and unlabelled crystals, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.errors import ConfigError, DataError, choose
from cgnn.model import CrystalGNN
from cgnn.train.engine import reproducible
from cgnn.train.ensembles.member import Member
from cgnn.train.ensembles.side_by_side import Parts, Report
from cgnn.train.loop import Indices, fit
from cgnn.train.method import Method, Step
from cgnn.train.pu.bag import Bag, vote
from cgnn.train.trust.assess import combined_part

_SPIES = 13
"""Purpose of random numbers (`cgnn.train.pu.plan`)."""


class NonNegative(Method):
    r"""Learns by a risk that takes the drawn crystals for what they are: unlabelled.

    .. math:: R = \pi R_p^+ + \max(0, R_u^- - \pi R_p^-)

    with the share :math:`\pi` of positives among the unlabelled, and means of :math:`\log(1 + e^{\mp z})` over the
    positives (p) and the unlabelled (u) of a batch. Where the second term is negative, which only a network that has
    learned its crystals by heart can reach, the step goes up that term instead.

    Source: Kiryo et al., Positive-unlabeled learning with non-negative risk estimator, NIPS 2017, arXiv:1703.00593,
    eq. 6 and algorithm 1 with beta 0 and gamma 1; the logistic loss in place of the sigmoid, so that the outputs are
    probabilities.

    Args:
        prior: The share of positives among the unlabelled.
    """

    needs_steps = True

    def __init__(self, prior: float) -> None:
        self.prior = prior
        self.key = f"nnpu {prior!r}"

    def loss(self, step: Step) -> Tensor:
        """Return what a step goes down."""
        (target,) = step.model.targets
        positive, negative = risks(
            step.forward(step.batch)[target.name][:, 0], step.batch[target.field] == 1, self.prior
        )
        return torch.where(negative < 0, -negative, positive + negative)

    @torch.no_grad()
    def validate(self, model: CrystalGNN, batches: Iterable[Any]) -> dict[str, float]:
        """Return the risk on the validation part, cut at zero as in training."""
        (target,) = model.targets
        found = [(model(batch)[target.name][:, 0], batch[target.field] == 1) for batch in batches]
        raw, is_positive = (torch.cat(parts) for parts in zip(*found, strict=True))
        positive, negative = risks(raw, is_positive, self.prior)
        return {"val_score": float(positive + negative.clamp(min=0))}


def risks(raw: Tensor, is_positive: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """Return the two terms of the risk: of being positive, and (unbiased, it may be below 0) of being negative.

    Args:
        raw: Outputs of the network (B,).
        is_positive: Which crystals are positive (B,); the others are unlabelled.
        prior: Share of positives among the unlabelled.
    """
    p, u = is_positive.to(raw.dtype), (~is_positive).to(raw.dtype)
    as_positive, as_negative = functional.softplus(-raw), functional.softplus(raw)
    # a batch may hold one class only: the mean over none is 0
    positive_wrong = (p * as_positive).sum() / p.sum().clamp(min=1)
    positive_right = (p * as_negative).sum() / p.sum().clamp(min=1)
    unlabelled = (u * as_negative).sum() / u.sum().clamp(min=1)
    return prior * positive_wrong, unlabelled - prior * positive_right


def _bagging(
    config: Config, dataset: CrystalDataset, parts: Parts, folder: Path, report: Report | None, bag: Bag
) -> None:
    fit(config, dataset, parts, folder, True, report, bag)


def _nnpu(config: Config, dataset: CrystalDataset, parts: Parts, folder: Path, report: Report | None, bag: Bag) -> None:
    if bag.pu.prior is None:
        raise ConfigError("pu.prior: nnpu needs the share of positives among the unlabelled; set it, such as 0.2")
    if bag.counts is not None:
        raise ConfigError("pu.way nnpu: its bags are fitted one by one or in processes, not at once (batched)")
    weighing = Bag(bag.number, bag.seed, parts, bag.outside, bag.pu, NonNegative(bag.pu.prior))
    fit(config, dataset, parts, folder, True, report, weighing)


def _spies(
    config: Config, dataset: CrystalDataset, parts: Parts, folder: Path, report: Report | None, bag: Bag
) -> None:
    spies, hidden = _with_spies(dataset, parts, bag)
    first = fit(config, hidden, parts, folder / "spies", True, report, bag).model
    with reproducible(config.train):
        of_spies = _probability(first, dataset, spies)
        # the share of spies that lies below is let go: some are as odd as a negative
        threshold = float(np.quantile(of_spies, 1 - bag.pu.spy_recall))
        second = {name: _reliable(first, dataset, indices, threshold) for name, indices in parts.items()}
    fit(config, dataset, second, folder, True, report, bag)


def _reliable(network: CrystalGNN, dataset: CrystalDataset, indices: Indices, threshold: float) -> Indices:
    """Return the positives of a part, and of its drawn crystals those below a score; at least the lowest tenth."""
    is_positive = _is_positive(dataset, indices)
    drawn = indices[~is_positive]
    scores = _probability(network, dataset, drawn)
    number = max(int((scores < threshold).sum()), math.ceil(len(drawn) / 10))
    return np.concatenate([indices[is_positive], np.sort(drawn[np.argsort(scores, kind="stable")[:number]])])


def _probability(network: CrystalGNN, dataset: CrystalDataset, indices: Indices) -> NDArray[np.float64]:
    (target,) = dataset.targets
    return combined_part([network], dataset, indices).decoded[target.name].numpy()


def _with_spies(dataset: CrystalDataset, parts: Parts, bag: Bag) -> tuple[Indices, CrystalDataset]:
    """Return some of a bag's training positives, and the data set in which these are unlabelled."""
    positives = parts["train"][_is_positive(dataset, parts["train"])]
    number = min(max(1, round(bag.pu.spies * len(positives))), len(positives) - 1)
    if number < 1:
        raise DataError(f"bag {bag.number}: spies need two training positives at least, there is {len(positives)}")
    spies = np.sort(np.random.default_rng([bag.pu.seed, _SPIES, bag.number]).choice(positives, number, replace=False))
    (target,) = dataset.targets
    labels = dataset.label(target).copy()
    labels[spies] = 0.0
    return spies, dataset.relabelled({target.name: labels})


def _is_positive(dataset: CrystalDataset, indices: Indices) -> NDArray[np.bool_]:
    (target,) = dataset.targets
    return dataset.label(target, indices) == 1


PU_WAYS: dict[str, Callable[[Config, CrystalDataset, Parts, Path, Report | None, Bag], None]] = {
    "bagging": _bagging,
    "nnpu": _nnpu,
    "spies": _spies,
}
"""How a bag learns from its positives and its drawn unlabelled crystals; each goes on where it stands and leaves
``best/`` in the bag's folder. ``bagging`` takes the drawn for negatives (Jang et al., JACS 142, 18836, 2020), ``nnpu``
weighs them as unlabelled (`NonNegative`), ``spies`` first finds those that are surely negative: positives hidden among
the drawn tell how low a score must be for that (Liu et al., ICDM 2003, 10.1109/ICDM.2003.1250918). The draws are the
same, so every way scores crystals by networks that did not see them."""


def learn(
    config: Config, dataset: CrystalDataset, parts: Parts, folder: Path, report: Report | None, member: Member
) -> None:
    """Fit a bag, and let it vote on the crystals that it did not see."""
    assert isinstance(member, Bag)
    choose(PU_WAYS, member.pu.way, "way of learning")(config, dataset, parts, folder, report, member)
    vote(config, dataset, folder, member)
