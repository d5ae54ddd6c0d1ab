"""Kernel ridge regression in place of a head's layers: it is solved at once, not trained (`cgnn.train.at_once`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FARTHEST = 5.0
"""A scaled feature beyond it counts as it: a crystal that is odd in one number shall not be far from all others."""


class KernelRidge(nn.Module):
    r"""A smooth function of the distances from the crystals that it was solved for.

    .. math::
        f(x) = \sum_n a_n \, k(|z(x) - z_n|), \quad k(r) = \left(1 + \frac{\sqrt{3} r}{\ell}\right)
        e^{-\sqrt{3} r / \ell}, \quad z = F_g^{-1/4} \, \mathrm{clip}\left(\frac{x - \mu}{\sigma}, -5, 5\right)

    with mean :math:`\mu` and standard deviation :math:`\sigma` of the features of those crystals, the number
    :math:`F_g` of features of the same kind (so that the one volume counts beside 156 numbers about the elements) and
    the length :math:`\ell`. Far from all of them it falls to zero, the mean of their scaled labels. It has a slope
    everywhere. Before it is solved it is zero.

    Source: Matern kernel of order 3/2, Rasmussen and Williams, Gaussian Processes for Machine Learning, MIT Press
    2006, eq. 4.17; f is the mean of their eq. 2.25.

    Args:
        parts: Number of features of each kind, one after another; F in all.
    """

    mean: Tensor
    factor: Tensor
    share: Tensor
    length: Tensor
    known: Tensor
    weight: Tensor

    def __init__(self, parts: Sequence[int]) -> None:
        super().__init__()
        width = sum(parts)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("factor", torch.ones(width))
        self.register_buffer("share", torch.tensor([size**-0.25 for size in parts for _ in range(size)]))
        self.register_buffer("length", torch.ones(1))
        self.register_buffer("known", torch.zeros(0, width))
        self.register_buffer("weight", torch.zeros(0))

    def learn_scale(self, features: NDArray[np.float32], length: float, seen: NDArray[np.bool_] | bool = True) -> None:
        """Take the crystals that it is to be solved for.

        Args:
            features: Their features (N, F).
            length: The length of the kernel as a multiple of the median distance of two of them.
            seen: Which features count (F,); by default all.
        """
        x = torch.from_numpy(features).to(self.mean)
        self.mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
        # a feature that all have in common says nothing, and would be blown up where another crystal differs in it
        counts = (std > 1e-6 * (1 + self.mean.abs())) & torch.as_tensor(seen, device=std.device)
        self.factor = torch.where(counts, 1 / std, 0.0)
        self.known, self.weight = self._scaled(x), self.mean.new_zeros(len(x))
        some = self.known[:: math.ceil(len(x) / 1000)].double()
        between = torch.pdist(some)
        median = float(between.median()) if len(between) else 0.0
        self.length = self.mean.new_full((1,), length * median if median > 0 else 1.0)

    def solve(self, weight: NDArray[np.float64]) -> None:
        """Take the weights of the crystals (N,)."""
        self.weight = torch.from_numpy(weight).to(self.mean)

    def kernel(self, z: Tensor) -> Tensor:
        """Return the kernel between scaled features (B, F) and the crystals that it was solved for (B, N)."""
        # in double precision, so that nothing depends on which crystals stand in a batch together
        r = math.sqrt(3) * torch.cdist(z.double(), self.known.double()) / self.length.double()
        return (1 + r) * torch.exp(-r)

    def forward(self, x: Tensor) -> Tensor:
        """Return values (B, 1) of features (B, F)."""
        return (self.kernel(self._scaled(x)) @ self.weight.double())[:, None].to(x.dtype)

    def _scaled(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.factor).clamp(-FARTHEST, FARTHEST) * self.share

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Make room for as many crystals as the stored function was solved for."""
        given = state_dict.get(f"{prefix}known")
        if given is not None and given.ndim == 2:
            self.known, self.weight = (
                self.known.new_zeros(len(given), self.known.shape[1]),
                self.weight.new_zeros(len(given)),
            )
        super()._load_from_state_dict(state_dict, prefix, *others)
