"""What several networks say together: their mean on the learned scale, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgnn.model.network import CrystalGNN
from cgnn.targets import TRANSFORMS


class Learned(NamedTuple):
    """A regression target on its learned scale; n crystals, or n atoms for an atom-level target.

    Args:
        value: Mean over the members (n,).
        variance_between: Variance of the members about it, divided by M - 1 (n,); zero for one member.
        scale_within: The heads' own scale of the error, root of the mean square over the members (n,); zero
            where it was not learned.
    """

    value: Tensor
    variance_between: Tensor
    scale_within: Tensor

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the same as arrays by name."""
        return {name: values.cpu().numpy() for name, values in self._asdict().items()}


@dataclass(frozen=True)
class Combined:
    """What the members say together.

    Args:
        decoded: Target name -> physical values (n,), or probabilities.
        learned: Name of a regression target -> the same on its learned scale, with the spread.
        spread: Name of a binary target -> standard deviation of the members' probabilities (n,), with M - 1; only
            where there are several members.
    """

    decoded: dict[str, Tensor]
    learned: dict[str, Learned]
    spread: dict[str, Tensor] = field(default_factory=dict)


def features_of(members: Sequence[CrystalGNN], batch: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the features of atoms and of crystals that the heads of each member see.

    Where all members see the same descriptors alone, as trees may, these are made once.
    """
    first = members[0].config
    has_own = not first.is_fitted_at_once or first.depth or first.hints
    if not has_own and all(member.config == first for member in members):
        return [members[0].features(batch)] * len(members)
    return [member.features(batch) for member in members]


def combined(members: Sequence[CrystalGNN], raws: Sequence[Mapping[str, Tensor]]) -> Combined:
    r"""Return what the members say together of some crystals.

    With value :math:`\mu_m` of member m on the learned scale (log10 for moduli), and the target's transform t,

    .. math:: y = t^{-1}(\bar\mu), \quad \bar\mu = \frac1M \sum_m \mu_m

    and of classes the mean of the probabilities. The sum of ``variance_between`` and the square of
    ``scale_within`` is the variance of an equal mixture of the members. One member predicts what it would alone.

    Args:
        members: The networks.
        raws: What each gave for the same crystals, raw outputs by target name.

    Source: Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017, arXiv:1612.01474, section 2.4.
    """
    decoded: dict[str, Tensor] = {}
    learned: dict[str, Learned] = {}
    spread: dict[str, Tensor] = {}
    for target in members[0].targets:
        heads = [member.head(target.name) for member in members]
        outputs = [raw[target.name] for raw in raws]
        pairs = [head.learned(output) for head, output in zip(heads, outputs, strict=True)]
        if target.task == "regression":
            learned[target.name] = _mixture([pair for pair in pairs if pair is not None])
            decoded[target.name] = TRANSFORMS[target.transform].inverse(learned[target.name].value)
        else:
            each = torch.stack([head.decode(output) for head, output in zip(heads, outputs, strict=True)])
            decoded[target.name] = each.mean(0)
            if target.task == "binary" and len(members) > 1:
                spread[target.name] = each.std(0)
    return Combined(decoded, learned, spread)


def _mixture(pairs: Sequence[tuple[Tensor, Tensor]]) -> Learned:
    value = _mean([member for member, _ in pairs])
    squares = [(member - value) ** 2 for member, _ in pairs]
    between = torch.stack(squares).sum(0) / max(len(pairs) - 1, 1)
    return Learned(value, between, _mean([scale**2 for _, scale in pairs]).sqrt())


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)
