"""Boosted trees in place of a head's layers: they are grown at once, not trained step by step (`cgnn.train.grow`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cgnn.kernels import load


def kernel() -> Any:
    """Return the compiled library, or None where it was not built."""
    library = load("trees")
    if library is not None and not library.trees_add.argtypes:
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        library.trees_add.argtypes = [pointer, integer, integer, *[pointer] * 5, integer, integer, pointer, integer]
    return library


class BoostedTrees(nn.Module):
    r"""A sum of binary trees, :math:`f(x) = b + \sum_t v_t(x)`, as tensors of one shape for all trees.

    At a node a crystal goes to the left where its feature is not above the threshold, to the right otherwise; a leaf
    leads to itself on both sides. All numbers are stored as float32, which holds node numbers exactly.

    The function is piecewise constant: it has no slope, and jumps (by the value of one leaf among hundreds) where a
    feature crosses a threshold.

    Args:
        trees: Number of trees T.
        leaves: Leaves of a tree at most; a tree has room for M = 2 leaves - 1 nodes.
    """

    feature: Tensor
    threshold: Tensor
    sides: Tensor
    value: Tensor
    base: Tensor

    def __init__(self, trees: int, leaves: int) -> None:
        super().__init__()
        nodes = 2 * leaves - 1
        self.register_buffer("feature", torch.zeros(trees, nodes))
        self.register_buffer("threshold", torch.zeros(trees, nodes))
        self.register_buffer("sides", torch.zeros(2, trees, nodes))
        self.register_buffer("value", torch.zeros(trees, nodes))
        self.register_buffer("base", torch.zeros(1))

    def grow(self, base: float, trees: Sequence[NDArray[Any]]) -> None:
        """Take the trees that scikit-learn has grown.

        Args:
            base: What is predicted before the first tree.
            trees: For each tree its nodes, a structured array with ``value``, ``feature_idx``, ``num_threshold``,
                ``left``, ``right`` and ``is_leaf`` (M or fewer,).
        """
        self.base.fill_(base)
        self.value.zero_()
        for number, nodes in enumerate(trees):
            size, own = len(nodes), np.arange(len(nodes))
            leaf = nodes["is_leaf"].astype(bool)
            # a float32 is not above the float64 just where it is not above the next float32 below that
            below = nodes["num_threshold"].astype(np.float32)
            below = np.where(below > nodes["num_threshold"], np.nextafter(below, np.float32(-np.inf)), below)
            columns = {
                "feature": np.where(leaf, 0, nodes["feature_idx"]),
                "threshold": np.where(leaf, 0, below),
                "value": np.where(leaf, nodes["value"], 0),
            }
            for name, column in columns.items():
                self.get_buffer(name)[number, :size] = torch.as_tensor(column.astype(np.float32))
            for side, name in enumerate(("left", "right")):
                child = np.where(leaf, own, nodes[name])
                self.sides[side, number, :size] = torch.as_tensor(child.astype(np.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums (B, 1) of features (B, F)."""
        # clamped as whole numbers, of which none is nan: a damaged file must not lead out of the tables
        feature = self.feature.long().clamp(0, x.shape[1] - 1)
        sides = self.sides.long().clamp(0, self.feature.shape[1] - 1)
        on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
        summed = self._compiled if on_cpu and kernel() is not None else self._stepwise
        return (self.base.double() + summed(x, feature, sides)).to(x.dtype)[:, None]

    def _compiled(self, x: Tensor, feature: Tensor, sides: Tensor) -> Tensor:
        x, (left, right) = x.contiguous(), sides.int()
        feature, threshold, value = feature.int(), self.threshold.contiguous(), self.value.contiguous()
        sums = torch.zeros(len(x), dtype=torch.float64)
        tables = [table.data_ptr() for table in (feature, threshold, left, right, value)]
        given = [x.data_ptr(), *x.shape, *tables, *feature.shape, sums.data_ptr(), torch.get_num_threads()]
        if kernel().trees_add(*given):
            raise MemoryError("no memory for boosted trees")
        return sums

    def _stepwise(self, x: Tensor, feature: Tensor, sides: Tensor) -> Tensor:
        trees, nodes = feature.shape
        start = torch.arange(trees, device=x.device) * nodes
        feature, threshold = feature.flatten(), self.threshold.flatten()
        left, right = (sides + start[:, None]).flatten(1)
        place = start.expand(len(x), trees)
        for _ in range(nodes // 2):  # no path is longer; most are done much earlier
            is_left = x.gather(1, feature[place]) <= threshold[place]
            following = torch.where(is_left, left[place], right[place])
            if torch.equal(following, place):
                break
            place = following
        return self.value.double().flatten()[place].sum(dim=1)
