"""Crystals changed a little: atoms moved, elements hidden, features dropped.

Random numbers are torch's own, which `fit` starts anew for each step; they are drawn on the CPU, so that they are the
same on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.utils import scatter

from cgnn.model.descriptors import changed

HIDDEN = 0
"""Atomic number of an atom whose element is hidden: a row that no element uses."""


def lengths(graph: Any) -> Tensor:
    """Return the cube root of the volume per atom of each crystal (B,), Å."""
    atoms = torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)
    return (graph.lattice.det().abs() / atoms) ** (1 / 3)


def moved(graph: Any, noise: float) -> tuple[Any, Tensor]:
    r"""Return crystals with moved atoms, and the shifts in units of their standard deviation.

    .. math:: r_i' = r_i + s\, (V/N)^{1/3} (\epsilon_i - \bar\epsilon), \quad \epsilon_i \sim \mathcal N(0, 1)

    The mean over a crystal is taken off, because no network can see a shift of the whole. Neighbours stay those
    of the atoms at rest.

    Args:
        graph: A batch of crystals.
        noise: Standard deviation s of a coordinate as a share of the cube root of the volume per atom.

    Returns:
        The batch with other positions, and the centred shifts (N, 3).
    """
    drawn = torch.randn(graph.pos.shape, dtype=graph.pos.dtype).to(graph.pos.device)
    mean = scatter(drawn, graph.batch, dim=0, dim_size=graph.num_graphs, reduce="mean")
    shift = drawn - mean.index_select(0, graph.batch)
    by = noise * lengths(graph).index_select(0, graph.batch)[:, None]
    return changed(graph, pos=graph.pos + by * shift), shift


def without_elements(graph: Any, share: float) -> tuple[Any, Tensor]:
    """Return crystals of which the elements of a share of the atoms are hidden, and which atoms these are (N,).

    At least one of a batch is.
    """
    drawn = torch.rand(len(graph.z))
    is_hidden = ((drawn < share) | (drawn == drawn.min())).to(graph.z.device)
    return changed(graph, z=graph.z.masked_fill(is_hidden, HIDDEN)), is_hidden


@contextmanager
def dropping(module: nn.Module, share: float) -> Iterator[None]:
    """Drop a share of what a module gives, whatever mode it is in."""
    if not share:
        yield
        return
    handle = module.register_forward_hook(lambda _, given, out: functional.dropout(out, share))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def same_draws(seed: int) -> Iterator[None]:
    """Draw the same random numbers at every call, and leave those of the training as they stand."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
