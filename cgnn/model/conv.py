"""The gated convolution, and normalisations and activations by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cgnn.errors import choose
from cgnn.model.gate import ACTIVATIONS as FUSED_ACTIVATIONS
from cgnn.model.gate import MAX_WIDTH, Affine, EdgePlan, gated_messages


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that uses the running statistics where a batch has a single row.

    A batch may be one elemental metal with one atom, from which no variance can be taken.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised features, same shape as ``x (n, F)``."""
        if self.training and len(x) < 2:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)

    def as_affine(self, count: int) -> Affine:
        """Return the normalisation of ``count`` rows as an affine map."""
        is_fixed = not self.training or count < 2
        mean, variance = (self.running_mean, self.running_var) if is_fixed else (None, None)
        return Affine(self.weight, self.bias, mean, variance, self.eps)

    def follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch of ``count`` rows, as training does.

        Args:
            mean: Mean over the rows (F,).
            variance: Biased variance over the rows (F,).
            count: Number of rows.
        """
        if not self.training or count < 2:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        self.num_batches_tracked += 1


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNorm,
    "layer": nn.LayerNorm,
    "none": lambda width: nn.Identity(),
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
}


@dataclass
class Edges:
    """The edges of a batch, the same for every convolution.

    Args:
        index: Source and target atoms (2, E), sorted by target.
        weight: Envelope (E, 1).
        features: Edge features (E, K); None where a plan is given.
        plan: The edges as the compiled kernel wants them, where it serves.
    """

    index: Tensor
    weight: Tensor
    features: Tensor | None = None
    plan: EdgePlan | None = None


class GatedConv(nn.Module):
    r"""Gated convolution over the neighbours of each atom.

    .. math::
        p_{ij} &= \mathrm{norm}_p(W_t h_i + W_s h_j + W_e e_{ij} + b) = [f_{ij}, c_{ij}] \\
        m_i &= \mathrm{norm}\Big(\sum_j w_{ij}\, \mathrm{sigmoid}(f_{ij}) \odot a(c_{ij})\Big) \\
        h_i' &= a(h_i + m_i)

    with target atom i, source atom j, activation a and envelope w. With ``batch`` norms, ``softplus`` and a
    residual this is the layer of the original CGCNN, whose one matrix on the concatenated ``[h_i, h_j,
    e_ij]`` is split by blocks here: the same numbers, but the first two products are per atom instead of per
    edge. Equivariant under permutation; invariant under rotation and translation.

    Source: Xie and Grossman, PRL 120, 145301 (2018), doi:10.1103/PhysRevLett.120.145301, eq. 5.

    Args:
        width: Features per atom F.
        edge_width: Features per edge K.
        pair_norm: Entry of `NORMS` for the pair vector.
        norm: Entry of `NORMS` for the summed messages.
        activation: Entry of `ACTIVATIONS`.
        residual: Whether ``h_i`` is added to the messages.
    """

    def __init__(
        self,
        width: int,
        edge_width: int,
        pair_norm: str = "batch",
        norm: str = "batch",
        activation: str = "softplus",
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.target = nn.Linear(width, 2 * width)
        self.source = nn.Linear(width, 2 * width, bias=False)
        self.edge = nn.Linear(edge_width, 2 * width, bias=False)
        self._start_as_one_matrix(2 * width + edge_width)
        self.pair_norm = choose(NORMS, pair_norm, "normalisation")(2 * width)
        self.norm = choose(NORMS, norm, "normalisation")(width)
        self.activation = choose(ACTIVATIONS, activation, "activation")()
        self._activation = activation
        self._is_folded = False
        self._folded_filters: Tensor | None = None
        self.residual = residual

    def _start_as_one_matrix(self, inputs: int) -> None:
        """Draw the blocks with the spread that the undivided matrix would have."""
        bound = inputs**-0.5
        for parameter in (self.target.weight, self.target.bias, self.source.weight, self.edge.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, h: Tensor, edges: Edges) -> Tensor:
        """Return updated atom features (N, F) of atom features ``h`` (N, F)."""
        messages = self._fused(h, edges.plan) if edges.plan is not None else self._plain(h, edges)
        update = self.norm(messages)
        return self.activation(h + update if self.residual else update)

    @torch.no_grad()
    def fold(self) -> None:
        """Take the pair normalisation, as it stands after training, into the weights; for prediction only."""
        self._is_folded = True
        if not isinstance(self.pair_norm, BatchNorm):
            return
        norm = self.pair_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        for linear in (self.target, self.source, self.edge):
            linear.weight *= factor[:, None]
        self.target.bias.copy_(factor * (self.target.bias - norm.running_mean) + norm.bias)
        self.pair_norm = nn.Identity()

    def _filters(self, table: Tensor) -> Tensor:
        """Return the edge filter on the grid (M, 2F); once it is folded it stays the same."""
        if not self._is_folded:
            return self.edge(table)
        if self._folded_filters is None:
            self._folded_filters = self.edge(table)
        return self._folded_filters

    @staticmethod
    def can_fuse(width: int, pair_norm: str, activation: str) -> bool:
        """Tell whether the compiled kernel knows a layer of these settings."""
        return width <= MAX_WIDTH and pair_norm in ("batch", "none") and activation in FUSED_ACTIVATIONS

    def _plain(self, h: Tensor, edges: Edges) -> Tensor:
        source, target = edges.index
        pair = self.target(h).index_select(0, target) + self.source(h).index_select(0, source)
        gate, core = self.pair_norm(pair + self.edge(edges.features)).chunk(2, dim=1)
        message = torch.sigmoid(gate) * self.activation(core) * edges.weight
        return message.new_zeros(len(h), message.shape[1]).index_add(0, target, message)

    def _fused(self, h: Tensor, plan: EdgePlan) -> Tensor:
        count = len(plan.source)
        batch_norm = self.pair_norm if isinstance(self.pair_norm, BatchNorm) else None
        norm = batch_norm.as_affine(count) if batch_norm else Affine.identity(2 * h.shape[1])
        filters = self._filters(plan.table)
        messages, mean, variance = gated_messages(self.target(h), self.source(h), filters, plan, norm, self._activation)
        if batch_norm:
            batch_norm.follow(mean, variance, count)
        return messages
