"""What is known of a crystal without a graph: features of whole crystals, beside the pooled ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter

from cgnn.errors import choose
from cgnn.model.embed import atomic_volumes, properties


class Descriptor(nn.Module):
    """Features of whole crystals."""

    outputs: int

    def forward(self, graph: Any) -> Tensor:
        """Return the features (B, outputs) of a batch."""
        raise NotImplementedError


class ElementStatistics(Descriptor):
    """Mean, mean absolute deviation, minimum and maximum of the element properties over the atoms (B, 4P)."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.as_tensor(properties(), dtype=torch.float32))
        self.outputs = 4 * self.table.shape[1]

    def forward(self, graph: Any) -> Tensor:
        """Return the statistics (B, 4P)."""
        values = self.table.index_select(0, graph.z)
        mean = _mean(values, graph)
        deviation = _mean((values - mean.index_select(0, graph.batch)).abs(), graph)
        low, high = (scatter(values, graph.batch, dim_size=graph.num_graphs, reduce=how) for how in ("min", "max"))
        return torch.cat([mean, deviation, low, high], dim=1)


class Volume(Descriptor):
    """Volume per atom, and its ratio to that of the pure elements, as logarithms (B, 2).

    Shifted and scaled by fixed numbers to about zero and one.
    """

    outputs = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("elemental", torch.as_tensor(atomic_volumes(), dtype=torch.float32))

    def forward(self, graph: Any) -> Tensor:
        """Return the two features (B, 2)."""
        atoms = torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)
        volume = graph.lattice.det().abs() / atoms
        elemental = _mean(self.get_buffer("elemental").index_select(0, graph.z)[:, None], graph)[:, 0]
        features = [(volume.log10() - 1.2) / 0.2, (volume / elemental).log10() / 0.2]
        return torch.stack(features, dim=1)


DESCRIPTORS: dict[str, Callable[[], Descriptor]] = {"element_statistics": ElementStatistics, "volume": Volume}
"""Features of whole crystals; each is the same in every cell, orientation and order of the atoms."""


class CrystalDescriptors(nn.Module):
    """A small network over named descriptors of crystals, which is added to the pooled features.

    Args:
        names: Entries of `DESCRIPTORS`.
        width: Features per crystal F.
        dropout: Share of the hidden features that is dropped in training.
    """

    def __init__(self, names: Sequence[str], width: int, dropout: float = 0.0) -> None:
        super().__init__()
        parts = [choose(DESCRIPTORS, name, "descriptor")() for name in names]
        self.parts = nn.ModuleList(parts)
        inputs = sum(part.outputs for part in parts)
        self.net = nn.Sequential(
            nn.Linear(inputs, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, graph: Any) -> Tensor:
        """Return crystal features (B, F) of a batch."""
        features = torch.cat([part(graph) for part in self.parts], dim=1)
        return self.net(features.to(next(self.net.parameters()).dtype))


def _mean(values: Tensor, graph: Any) -> Tensor:
    """Return the mean over each crystal's atoms (B, ...) of values of atoms (N, ...)."""
    total = scatter(values, graph.batch, dim_size=graph.num_graphs, reduce="sum")
    return total / torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)[:, None]
