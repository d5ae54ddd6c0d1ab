"""The network: embed, convolve, pool, heads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn.aggr import AttentionalAggregation
from torch_geometric.utils import scatter

from cgnn.config import HintsConfig, ModelConfig
from cgnn.errors import choose
from cgnn.graph.fields import distances
from cgnn.model.conv import Edges, EdgeUpdate, GatedConv
from cgnn.model.descriptors import CrystalDescriptors
from cgnn.model.edgewise import EdgeList
from cgnn.model.edgewise import kernel as edgewise_kernel
from cgnn.model.embed import ElementEmbedding, GaussianBasis, envelope
from cgnn.model.gate import EdgePlan, kernel
from cgnn.model.heads import HEADS, Head
from cgnn.model.remedies import build_remedy
from cgnn.targets import Target


class Pool(nn.Module):
    """Features of crystals as a reduction over their atoms.

    Args:
        reduce: ``mean``, ``sum`` or ``max``.
    """

    def __init__(self, reduce: str) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, h: Tensor, batch: Tensor, crystals: int) -> Tensor:
        """Return crystal features (B, F) of atom features (N, F)."""
        if self.reduce == "max":
            return scatter(h, batch, dim=0, dim_size=crystals, reduce="max")
        total = scatter(h, batch, dim=0, dim_size=crystals, reduce="sum")
        if self.reduce == "sum":
            return total
        # Sum, then divide: the backward of a mean reduction is ten times slower on a CPU.
        return total / torch.bincount(batch, minlength=crystals).clamp(min=1)[:, None].to(h.dtype)


class AttentionPool(nn.Module):
    """Mean of the atoms weighted by a learned softmax within each crystal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.aggregate = AttentionalAggregation(nn.Linear(width, 1))

    def forward(self, h: Tensor, batch: Tensor, crystals: int) -> Tensor:
        """Return crystal features (B, F) of atom features (N, F)."""
        return self.aggregate(h, batch, dim_size=crystals)


POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "mean": lambda width: Pool("mean"),
    "sum": lambda width: Pool("sum"),
    "max": lambda width: Pool("max"),
    "attention": AttentionPool,
}


class CrystalGNN(nn.Module):
    """Crystal graph network: element vectors, gated convolutions, pooling, one head per target.

    Invariant under rotation, translation, permutation of the atoms and choice of the cell (``mean``, ``max``
    and ``attention`` pooling), as far as the graph is.

    Args:
        config: Width, depth and the named parts.
        targets: What is predicted.
    """

    def __init__(self, config: ModelConfig, targets: Sequence[Target]) -> None:
        super().__init__()
        self.config = config
        self.targets = tuple(targets)
        self.may_fuse = True  # False keeps the compiled kernel away, which torch.func can't look into
        self.embed = ElementEmbedding(config.elements, config.width)
        self.basis = GaussianBasis(config.gaussians, *config.gaussian_range, width=config.gaussian_width)
        edge_width = config.edge_width if config.edge_updates else config.gaussians
        self.edge_embed = nn.Linear(config.gaussians, edge_width) if config.edge_updates else None
        self.convs = nn.ModuleList(
            GatedConv(
                config.width,
                edge_width,
                pair_norm=config.pair_norm,
                norm=config.norm,
                activation=config.activation,
                residual=config.residual,
                message_depth=config.message_depth,
            )
            for _ in range(config.depth)
        )
        # the last convolution needs none after it
        updates = max(config.depth - 1, 0) if config.edge_updates else 0
        self.edge_updates = nn.ModuleList(
            EdgeUpdate(config.width, edge_width, config.activation) for _ in range(updates)
        )
        self.pool = choose(POOLINGS, config.pooling, "pooling")(config.width)
        width = None if config.is_fitted_at_once else config.width
        self.descriptors = CrystalDescriptors(config.descriptors, width, config.dropout) if config.descriptors else None
        self.heads = nn.ModuleDict(
            # keyed by field: a module can't hold one called "type" or "values"
            {target.field: choose(HEADS, target.task, "task")(target, config) for target in targets}
        )
        # last, so that the others' first weights do not depend on them
        self.remedy = build_remedy(config)
        self.hints = Hints(config.hints, width) if config.hints else None

    def atom_features(self, graph: Any) -> Tensor:
        """Return the features of atoms after the last convolution (N, F)."""
        layers = [self.embed(graph.z)]
        if not self.convs:
            return self.remedy.pooled(layers)
        edges = self._edges(graph, layers[0].dtype)
        for number, conv in enumerate(self.convs):
            h = conv(self.remedy.taken(layers), edges, lambda x: self.remedy.mixed(x, layers))
            layers.append(self.remedy(h, layers, graph))
            if number < len(self.edge_updates):
                edges = self.edge_updates[number](layers[-1], edges)
        return self.remedy.pooled(layers)

    @property
    def _is_edgewise(self) -> bool:
        """Whether what an edge brings to its messages is more than a function of its distance."""
        return self.config.edge_updates or self.config.message_depth > 1

    def _edges(self, graph: Any, dtype: torch.dtype) -> Edges:
        distance = distances(graph)
        target = graph.edge_index[1]
        weight = self.remedy.weights(envelope(distance, graph.reach.index_select(0, target)))
        can_fuse = self._can_fuse(graph, distance, dtype)
        if can_fuse:
            ptr = functional.pad(torch.bincount(target, minlength=len(graph.z)).cumsum(0), (1, 0))
            source = graph.edge_index[0].int()
            if not self._is_edgewise:
                plan = EdgePlan(ptr, source, *self.basis.on_grid(distance), weight.float(), self.basis.table())
                return Edges(graph.edge_index, weight, plan=plan)
        features = self.basis(distance.to(dtype))
        if self.edge_embed is not None:
            features = self.edge_embed(features)
        edges = Edges(graph.edge_index, weight.to(dtype)[:, None], features)
        if can_fuse:
            edges.list = EdgeList(ptr, source, weight.float())
        return edges

    def _can_fuse(self, graph: Any, distance: Tensor, dtype: torch.dtype) -> bool:
        """Tell whether a compiled kernel can take the convolutions of this batch."""
        on_cpu = distance.device.type == "cpu" and dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not self.may_fuse or not on_cpu or distance.requires_grad or torch.compiler.is_compiling():
            return False
        config = self.config
        is_built = (edgewise_kernel() if self._is_edgewise else kernel()) is not None
        is_known = GatedConv.can_fuse(config.width, config.pair_norm, config.activation)
        if not is_built or not is_known or not (self._is_edgewise or self.basis.has_grid):
            return False
        target = graph.edge_index[1]
        return bool((target[1:] >= target[:-1]).all())

    def forward(self, graph: Any) -> dict[str, Tensor]:
        """Return raw outputs by target name, (B, outputs) or for atom-level targets (N, outputs).

        Args:
            graph: Batch of crystals with the fields of ``CONVENTIONS.md``, ``batch`` and ``num_graphs``.
        """
        return self.outputs(*self.features(graph))

    def features(self, graph: Any) -> tuple[Tensor, Tensor]:
        """Return the features of atoms (N, F) and of crystals (B, F) that the heads see."""
        h = self.atom_features(graph)
        return h, self.crystal_features(h, graph)

    def outputs(self, h: Tensor, crystals: Tensor) -> dict[str, Tensor]:
        """Return raw outputs by target name of the features of atoms (N, F) and crystals (B, F)."""
        return {
            target.name: self.heads[target.field](crystals if target.level == "crystal" else h)
            for target in self.targets
        }

    def crystal_features(self, h: Tensor, graph: Any) -> Tensor:
        """Return the features of crystals (B, F) that their heads see, of atom features (N, F)."""
        pooled = self.pool(h, graph.batch, graph.num_graphs)
        others = [part(graph).to(pooled.dtype) for part in (self.hints, self.descriptors) if part is not None]
        if not self.config.is_fitted_at_once:
            return sum(others, pooled)
        return torch.cat([pooled, *others] if len(self.convs) else others, dim=1)

    def folded(self) -> CrystalGNN:
        """Return a copy for prediction with the pair normalisations taken into the weights: less work, same numbers."""
        twin = copy.deepcopy(self).eval()
        for conv in twin.convs:
            assert isinstance(conv, GatedConv)
            conv.fold()
        if self.config.pair_norm == "batch":
            twin.config = self.config.model_copy(update={"pair_norm": "none"})
        if twin.hints is not None:
            twin.hints.network = twin.hints.network.folded()
        return twin

    def head(self, name: str) -> Head:
        """Return the head of a target."""
        head = self.heads[f"y_{name}"]
        assert isinstance(head, Head)
        return head

    def loss(self, raw: dict[str, Tensor], graph: Any, loss: str, weights: Tensor | None = None) -> Tensor:
        """Return the loss: for each target the mean over its known labels, weighted and summed.

        Args:
            raw: Raw outputs by target name.
            graph: The batch, with labels.
            loss: Entry of `cgnn.model.heads.LOSSES`.
            weights: How much each crystal counts in the means (B,), such as how often it was drawn; by default one.
        """
        return self._over_targets(graph, lambda head, labels: head.losses(raw[head.target.name], labels, loss), weights)

    def score(self, raw: dict[str, Tensor], graph: Any, loss: str) -> Tensor:
        """Return what tells a good epoch: the loss of the predictions alone, summed likewise."""
        return self._over_targets(graph, lambda head, labels: head.scores(raw[head.target.name], labels, loss))

    def _over_targets(
        self, graph: Any, losses: Callable[[Head, Tensor], Tensor], weights: Tensor | None = None
    ) -> Tensor:
        total = torch.zeros((), device=graph.z.device)
        for target in self.targets:
            labels = graph[target.field]
            known = torch.isfinite(labels)
            # Unknown labels are masked, not cut out: a mask needs no word from the device, and every weight gets a
            # gradient, for which processes that train together wait.
            each = losses(self.head(target.name), torch.where(known, labels, 1.0))
            each = torch.where(known, each, 0.0)
            counts = known
            if weights is not None:
                by_label = weights if target.level == "crystal" else weights.index_select(0, graph.batch)
                each, counts = each * by_label, known * by_label
            total = total + target.weight * each.sum() / counts.sum().clamp(min=1)
        return total

    def decode(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return predictions in physical units (or probabilities) by target name."""
        return {name: self.head(name).decode(output) for name, output in raw.items()}


class Hints(nn.Module):
    r"""What a trained network says of a crystal, taken to its features by a matrix that starts at zero.

    .. math:: c' = c + W o(x)

    with the pooled features c (B, F), the raw outputs o (B, P) for the network's crystal-level targets, and W (F, P).
    The network never changes, neither its weights nor, in training, its running statistics. What is fitted at once
    learns no matrix, and sees the features of the crystals that the network's heads see.

    Args:
        config: Settings of the network and its targets.
        width: Features per crystal F; None for those of the network.
    """

    def __init__(self, config: HintsConfig, width: int | None) -> None:
        super().__init__()
        self.network = CrystalGNN(config.model, config.targets).requires_grad_(False).eval()
        self.names = config.names
        self.linear: nn.Linear | None = None
        if width is not None:
            said = sum(self.network.head(name).outputs for name in self.names)
            self.linear = nn.Linear(said, width, bias=False)
            nn.init.zeros_(self.linear.weight)

    def train(self, mode: bool = True) -> Hints:
        """Change the mode of the matrix alone."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, graph: Any) -> Tensor:
        """Return what is added to the features of the crystals of a batch, or stands beside them (B, F)."""
        if self.linear is None:
            return self.network.features(graph)[1]
        raw = self.network(graph)
        said = [raw[name][:, : self.network.head(name).outputs] for name in self.names]
        return self.linear(torch.cat(said, dim=1).to(self.linear.weight.dtype))


@torch.no_grad()
def raw_outputs(model: CrystalGNN, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return the raw outputs of several batches, one after another, by target name."""
    parts = [model(batch) for batch in batches]
    return {target.name: torch.cat([part[target.name] for part in parts]) for target in model.targets}
