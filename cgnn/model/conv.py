"""The gated convolution, and normalisations and activations by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cgnn.errors import choose
from cgnn.model.edgewise import EdgeList, edge_hidden, edge_messages
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
    """The edges of a batch, as a convolution takes them.

    Args:
        index: Source and target atoms (2, E), sorted by target.
        weight: Envelope (E, 1).
        features: Edge features (E, K); None where a plan is given.
        plan: The edges as the kernel wants them that looks features up by distance, where it serves.
        list: The edges as the kernel wants them that takes features edge by edge, where it serves.
    """

    index: Tensor
    weight: Tensor
    features: Tensor | None = None
    plan: EdgePlan | None = None
    list: EdgeList | None = None


class PairLayer(nn.Module):
    r"""Hidden layer over an edge and its two atoms.

    .. math:: x_{ij} = a(V_t h_i + V_s h_j + V_e e_{ij} + b)

    The matrix on ``[h_i, h_j, e_ij]`` is split by blocks: two of the products are per atom.

    Args:
        width: Features per atom F.
        edge_width: Features per edge K.
        hidden: Features of the layer H.
        activation: Entry of `ACTIVATIONS`.
    """

    def __init__(self, width: int, edge_width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.target = nn.Linear(width, hidden)
        self.source = nn.Linear(width, hidden, bias=False)
        self.edge = nn.Linear(edge_width, hidden, bias=False)
        start_as_one_matrix(self.target, self.source, self.edge)
        self.activation = choose(ACTIVATIONS, activation, "activation")()
        self._activation = activation

    def forward(self, h: Tensor, edges: Edges) -> Tensor:
        """Return the layer (E, H) of atom features ``h`` (N, F)."""
        by_target, by_source, by_edge = self.target(h), self.source(h), self.edge(edges.features)
        if edges.list is not None:
            return edge_hidden(by_target, by_source, by_edge, edges.list, self._activation)
        hidden: Tensor = self.activation(on_edges(by_target, by_source, edges.index) + by_edge)
        return hidden


class EdgeUpdate(nn.Module):
    r"""Edge features updated from the edge's atoms.

    .. math:: e_{ij}' = e_{ij} + V\, a(V_t h_i + V_s h_j + V_e e_{ij} + b)

    What an edge learns here goes nowhere but into its own later messages, whose weight is the envelope: an edge
    that vanishes takes it along. Equivariant under permutation; invariant under rotation and translation.

    Source: Ruff et al., Digital Discovery 3, 594 (2024), doi:10.1039/D4DD00018H (edge update of coGN).

    Args:
        width: Features per atom F.
        edge_width: Features per edge K.
        activation: Entry of `ACTIVATIONS`.
    """

    def __init__(self, width: int, edge_width: int, activation: str = "softplus") -> None:
        super().__init__()
        self.pair = PairLayer(width, edge_width, edge_width, activation)
        self.out = nn.Linear(edge_width, edge_width, bias=False)

    def forward(self, h: Tensor, edges: Edges) -> Edges:
        """Return the edges with updated features, of atom features ``h`` (N, F)."""
        assert edges.features is not None
        return replace(edges, features=_plus(edges.features, self.out, self.pair(h, edges)))


class DeepTerm(nn.Module):
    r"""What a deeper message adds to the pair vector: a small network over the edge and its atoms.

    .. math::
        x_1 &= a(V_t h_i + V_s h_j + V_e e_{ij} + b) \\
        x_{k+1} &= x_k + a(V_k x_k + b_k)

    and ``W x`` of the last.

    Args:
        width: Features per atom F, and of the hidden layers.
        edge_width: Features per edge K.
        layers: Hidden layers.
        activation: Entry of `ACTIVATIONS`.
    """

    def __init__(self, width: int, edge_width: int, layers: int, activation: str) -> None:
        super().__init__()
        self.pair = PairLayer(width, edge_width, width, activation)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.out = nn.Linear(width, 2 * width, bias=False)
        self.activation = choose(ACTIVATIONS, activation, "activation")()

    def forward(self, h: Tensor, edges: Edges, linear: Tensor) -> Tensor:
        """Return the term added to the linear one of the edges (E, 2F), of atom features ``h`` (N, F)."""
        x = self.pair(h, edges)
        for layer in self.hidden:
            x = x + self.activation(layer(x))
        return _plus(linear, self.out, x)


def _plus(x: Tensor, linear: nn.Linear, y: Tensor) -> Tensor:
    """Return ``x + W y`` in one pass."""
    return torch.addmm(x, y, linear.weight.T)


def on_edges(by_target: Tensor, by_source: Tensor, index: Tensor) -> Tensor:
    """Return the sum of what target and source atoms (N, C) bring to each edge (E, C)."""
    source, target = index
    return by_target.index_select(0, target) + by_source.index_select(0, source)


def start_as_one_matrix(*blocks: nn.Linear) -> None:
    """Draw blocks of a matrix, and the bias of the first, with the spread that the undivided one would have."""
    bound = sum(block.in_features for block in blocks) ** -0.5
    first, *others = blocks
    for parameter in (first.weight, first.bias, *(block.weight for block in others)):
        nn.init.uniform_(parameter, -bound, bound)


class GatedConv(nn.Module):
    r"""Gated convolution over the neighbours of each atom.

    .. math::
        p_{ij} &= \mathrm{norm}_p(W_t h_i + W_s h_j + W_e e_{ij} + b + D_{ij}) = [f_{ij}, c_{ij}] \\
        m_i &= \mathrm{norm}\Big(\sum_j w_{ij}\, \mathrm{sigmoid}(f_{ij}) \odot a(c_{ij})\Big) \\
        h_i' &= a(h_i + m_i)

    with target atom i, source atom j, activation a and envelope w; D is `DeepTerm` for a ``message_depth`` above
    one, beside which the linear term is the residual, and else zero. With ``batch`` norms, ``softplus``, a
    residual and no D this is the layer of the original CGCNN, whose one matrix on the concatenated ``[h_i, h_j,
    e_ij]`` is split by blocks here: the same numbers, but the first two products are per atom instead of per
    edge. Equivariant under permutation; invariant under rotation and translation.

    Source: Xie and Grossman, PRL 120, 145301 (2018), doi:10.1103/PhysRevLett.120.145301, eq. 5; deeper messages
    after Ruff et al., Digital Discovery 3, 594 (2024), doi:10.1039/D4DD00018H.

    Args:
        width: Features per atom F.
        edge_width: Features per edge K.
        pair_norm: Entry of `NORMS` for the pair vector.
        norm: Entry of `NORMS` for the summed messages.
        activation: Entry of `ACTIVATIONS`.
        residual: Whether ``h_i`` is added to the messages.
        message_depth: Dense layers of a message.
    """

    def __init__(
        self,
        width: int,
        edge_width: int,
        pair_norm: str = "batch",
        norm: str = "batch",
        activation: str = "softplus",
        residual: bool = True,
        message_depth: int = 1,
    ) -> None:
        super().__init__()
        self.target = nn.Linear(width, 2 * width)
        self.source = nn.Linear(width, 2 * width, bias=False)
        self.edge = nn.Linear(edge_width, 2 * width, bias=False)
        start_as_one_matrix(self.target, self.source, self.edge)
        self.pair_norm = choose(NORMS, pair_norm, "normalisation")(2 * width)
        self.norm = choose(NORMS, norm, "normalisation")(width)
        self.activation = choose(ACTIVATIONS, activation, "activation")()
        self._activation = activation
        self._is_folded = False
        self._folded_filters: Tensor | None = None
        self.residual = residual
        self.deep = DeepTerm(width, edge_width, message_depth - 1, activation) if message_depth > 1 else None

    def forward(self, h: Tensor, edges: Edges, mixed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return updated atom features (N, F) of atom features ``h`` (N, F).

        Args:
            h: Features of the atoms.
            edges: The edges.
            mixed: What a remedy makes of that to which the activation is applied.
        """
        is_fused = edges.plan is not None or edges.list is not None
        update = self.norm(self._fused(h, edges) if is_fused else self._plain(h, edges))
        x = h + update if self.residual else update
        return self.activation(x if mixed is None else mixed(x))

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
        for linear in (self.target, self.source, self.edge, *([self.deep.out] if self.deep is not None else [])):
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

    def _edge_term(self, h: Tensor, edges: Edges) -> Tensor:
        """Return what the edges themselves bring to the pair vector (E, 2F)."""
        linear: Tensor = self.edge(edges.features)
        return self.deep(h, edges, linear) if self.deep is not None else linear

    def _plain(self, h: Tensor, edges: Edges) -> Tensor:
        pair = on_edges(self.target(h), self.source(h), edges.index) + self._edge_term(h, edges)
        gate, core = self.pair_norm(pair).chunk(2, dim=1)
        message = torch.sigmoid(gate) * self.activation(core) * edges.weight
        return message.new_zeros(len(h), message.shape[1]).index_add(0, edges.index[1], message)

    def _fused(self, h: Tensor, edges: Edges) -> Tensor:
        count = edges.index.shape[1]
        batch_norm = self.pair_norm if isinstance(self.pair_norm, BatchNorm) else None
        norm = batch_norm.as_affine(count) if batch_norm else Affine.identity(2 * h.shape[1])
        target, source = self.target(h), self.source(h)
        if edges.plan is not None:
            filters = self._filters(edges.plan.table)
            found = gated_messages(target, source, filters, edges.plan, norm, self._activation)
        else:
            assert edges.list is not None
            found = edge_messages(target, source, self._edge_term(h, edges), edges.list, norm, self._activation)
        messages, mean, variance = found
        if batch_norm:
            batch_norm.follow(mean, variance, count)
        return messages
