r"""How alike the atoms of a crystal become, layer by layer, measured from outside the network.

Four measures, because each alone misleads: the Dirichlet energy falls with the size of the features though they stay
apart, and features may be far apart along a single direction (arXiv:2502.04591, arXiv:2512.09890).

All are per crystal, and the same in every cell of it. Where all sites are equivalent every measure but the rank's is
zero by symmetry, whatever the network does: such crystals are to be left out
(`cgnn.data.prototype.inequivalent_sites`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter

from cgnn.graph.fields import distances
from cgnn.model.embed import envelope
from cgnn.model.network import CrystalGNN


@dataclass(frozen=True)
class Atoms:
    """Features of atoms, and how the atoms hang together.

    Args:
        h: Features (N, F).
        crystal: Crystal of each atom (N,).
        crystals: Number of crystals B.
        edge_index: Source and target atoms (2, E).
        weight: Envelope (E,).
    """

    h: Tensor
    crystal: Tensor
    crystals: int
    edge_index: Tensor
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the atoms of each crystal (B, ...) of values (N, ...)."""
        total = scatter(values, self.crystal, dim=0, dim_size=self.crystals, reduce="sum")
        sizes = torch.bincount(self.crystal, minlength=self.crystals).clamp(min=1)
        return total / sizes.view(-1, *[1] * (values.ndim - 1))

    @cached_property
    def energy(self) -> Tensor:
        """Dirichlet energy of each crystal (B,); two measures need it, and it is the costly part of both."""
        source, target = self.edge_index
        # in the network's own precision, in which the difference of close numbers is exact
        steps = (self.h.index_select(0, source) - self.h.index_select(0, target)).square().sum(1).double()
        return self.mean(self.double.new_zeros(len(self.h)).index_add(0, target, self.weight * steps))

    @cached_property
    def double(self) -> Tensor:
        """The features in double precision: where atoms have become alike, the difference of two is what matters."""
        return self.h.double()


def dirichlet(atoms: Atoms) -> Tensor:
    r"""Return the root of the Dirichlet energy of each crystal (B,).

    .. math:: \Big(\frac1N \sum_i \sum_j w_{ij} \lVert h_i - h_j \rVert^2\Big)^{1/2}

    over the edges, weighted by the envelope as the messages are: the same in every description of the crystal.

    Source: Rusch, Bronstein and Mishra, A survey on oversmoothing in graph neural networks, arXiv:2303.10993, eq. 3,
        there with unit weights.
    """
    return atoms.energy.sqrt()


def relative_dirichlet(atoms: Atoms) -> Tensor:
    r"""Return the root of the Dirichlet energy over the root mean square of the atoms' features (B,).

    It does not change with the size of the features; zero where these are zero.

    Source: Zhang et al., Rethinking oversmoothing in GNNs: a rank-based perspective, arXiv:2502.04591, who say why
        the energy alone is not enough.
    """
    size = atoms.mean(atoms.double.square().sum(1)).sqrt()
    return torch.where(size > 0, dirichlet(atoms) / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)


def mean_average_distance(atoms: Atoms) -> Tensor:
    r"""Return the mean cosine distance of two atoms of each crystal (B,).

    .. math::
        \frac{1}{N^2} \sum_{ij} (1 - \hat h_i \cdot \hat h_j)
        = \frac1N \sum_i \lVert \hat h_i - \bar{\hat h} \rVert^2, \quad \hat h_i = h_i / \lVert h_i \rVert

    over all pairs, an atom with itself among them, so that a supercell has the value of its cell. The source leaves
    out pairs that are exactly equal; here rounding would decide which these are.

    Source: Chen et al., Measuring and relieving the over-smoothing problem for graph neural networks from the
        topological view, AAAI 2020, arXiv:1909.03211, eq. 1 to 4.
    """
    unit = nn.functional.normalize(atoms.double, dim=1, eps=torch.finfo(torch.float64).tiny)
    away = unit - atoms.mean(unit).index_select(0, atoms.crystal)
    return atoms.mean(away.square().sum(1))


def effective_rank(atoms: Atoms) -> Tensor:
    r"""Return the effective rank of the feature matrix of each crystal (B,), from 1 to min(N, F).

    .. math:: \exp\Big(-\sum_k p_k \ln p_k\Big), \quad p_k = \sigma_k / \textstyle\sum_l \sigma_l

    with the singular values of the (N, F) matrix, which is not centred; zero for a matrix of zeros. Values below
    1e-7 of the largest, what single precision knows, count as zero.

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007; used for
        over-smoothing by Zhang et al., arXiv:2502.04591.
    """
    sizes = torch.bincount(atoms.crystal, minlength=atoms.crystals)
    starts = sizes.cumsum(0) - sizes
    order = torch.argsort(atoms.crystal, stable=True)
    rank = atoms.double.new_zeros(atoms.crystals)
    for size in sorted(set(sizes.tolist())):  # crystals of one size are decomposed at once
        if not size:
            continue
        which = torch.nonzero(sizes == size)[:, 0]
        rows = order[starts[which, None] + torch.arange(size, device=which.device)]
        values = _singular_values(atoms.double[rows])
        total = values.sum(1, keepdim=True)
        share = values / total.clamp(min=torch.finfo(values.dtype).tiny)
        rank[which] = torch.where(total[:, 0] > 0, torch.special.entr(share).sum(1).exp(), 0.0)
    return rank


def _singular_values(matrices: Tensor) -> Tensor:
    """Return the singular values (b, min(N, F)) of matrices (b, N, F), as roots of eigenvalues: that is faster."""
    narrow = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    squares = torch.linalg.eigvalsh(narrow @ narrow.mT)
    return torch.where(squares > 1e-14 * squares[:, -1:], squares, 0.0).sqrt()


MEASURES: dict[str, Callable[[Atoms], Tensor]] = {
    "dirichlet": dirichlet,
    "relative_dirichlet": relative_dirichlet,
    "mad": mean_average_distance,
    "effective_rank": effective_rank,
}
"""Features of atoms -> one number per crystal (B,)."""


@contextmanager
def watched(model: CrystalGNN) -> Iterator[list[Tensor]]:
    """Hang hooks on a network; give the features (N, F) of the embedding and after each layer, of all later calls.

    The hooks are gone at the end of the context; the network computes the same with them and without.
    """
    found: list[Tensor] = []
    note: Callable[..., None] = lambda module, inputs, output: found.append(output.detach())  # noqa: E731
    handles = [model.embed.register_forward_hook(note), model.remedy.register_forward_hook(note)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def smoothness(model: CrystalGNN, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return the measures of `MEASURES` by name, each (L + 1, B): the embedding and the L layers, crystal by crystal.

    Args:
        model: The network, in the mode in which it is to be looked at.
        batches: Crystals, such as have inequivalent sites.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    for batch in batches:
        with watched(model) as layers:
            model.atom_features(batch)
        weight = envelope(distances(batch), batch.reach.index_select(0, batch.edge_index[1]))
        found = [Atoms(h, batch.batch, batch.num_graphs, batch.edge_index, weight.double()) for h in layers]
        for name, measure in MEASURES.items():
            parts[name].append(torch.stack([measure(atoms) for atoms in found]))
    return {name: torch.cat(values, dim=1) for name, values in parts.items()}


def layer_parameters(model: CrystalGNN) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer."""
    return [list(conv.parameters()) for conv in model.convs]


class LayerWatch:
    """Gradients and updates of each layer in one step of a training, by hooks on the layers' parameters.

    `begin` before the step's backward pass, `end` after the optimizer has moved the weights. Nothing hangs on the
    network outside of the two.

    Args:
        model: The network that is trained.
    """

    def __init__(self, model: CrystalGNN) -> None:
        self._layers = layer_parameters(model)
        self._handles: list[Any] = []

    def begin(self) -> None:
        """Hang the hooks and remember the weights."""
        self.close()
        self._squares = [0.0 for _ in self._layers]
        self._before = [[parameter.detach().clone() for parameter in layer] for layer in self._layers]
        for number, layer in enumerate(self._layers):
            for parameter in layer:
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(self._noting(number))  # type: ignore[no-untyped-call]
                    self._handles.append(handle)

    def end(self) -> list[dict[str, float]]:
        """Return for each layer ``gradient``, the norm, and ``update``, that of the step over that of the weights."""
        self.close()
        rows = []
        for square, before, layer in zip(self._squares, self._before, self._layers, strict=True):
            moved = _norm([new.detach() - old for new, old in zip(layer, before, strict=True)])
            size = _norm(before)
            rows.append({"gradient": square**0.5, "update": moved / size if size else 0.0})
        return rows

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _noting(self, number: int) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._squares[number] += float(parameter.grad.double().square().sum())

        return note


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(sum(float(tensor.double().square().sum()) for tensor in tensors)) ** 0.5
