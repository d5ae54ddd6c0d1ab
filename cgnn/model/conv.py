"""The gated convolution, and normalisations and activations by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.utils import scatter

from cgnn.errors import choose


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
        self.residual = residual

    def _start_as_one_matrix(self, inputs: int) -> None:
        """Draw the blocks with the spread that the undivided matrix would have."""
        bound = inputs**-0.5
        for parameter in (self.target.weight, self.target.bias, self.source.weight, self.edge.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, h: Tensor, edge_index: Tensor, e: Tensor, weight: Tensor) -> Tensor:
        """Return updated atom features (N, F).

        Args:
            h: Atom features (N, F).
            edge_index: Source and target atoms (2, E).
            e: Edge features (E, K).
            weight: Envelope (E, 1).
        """
        source, target = edge_index
        pair = self.target(h).index_select(0, target) + self.source(h).index_select(0, source)
        gate, core = self.pair_norm(pair + self.edge(e)).chunk(2, dim=1)
        message = torch.sigmoid(gate) * self.activation(core) * weight
        update = self.norm(scatter(message, target, dim=0, dim_size=len(h), reduce="sum"))
        return self.activation(h + update if self.residual else update)
