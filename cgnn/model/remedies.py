r"""Remedies for depth, by name: what is changed between layers so that deep networks still learn.

A layer gives :math:`h_{l+1} = a(x_l)` with :math:`x_l = h_l + m_l`, or :math:`x_l = m_l` without its residual
(``model.residual``). A remedy changes what the layer takes, what its activation is applied to, what it gives, or what
is pooled; all with a strength from 0 (nothing changes) to 1. They act on the features of atoms and leave the
convolution alone, so the compiled kernels serve as before. All are equivariant under permutation and invariant under
rotation and translation, and no crystal sees another but through the statistics of batch normalisations in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import DiffGroupNorm as GroupNorm
from torch_geometric.nn import JumpingKnowledge
from torch_geometric.nn import PairNorm as Centring
from torch_geometric.utils import scatter

from cgnn.config import ModelConfig
from cgnn.errors import ConfigError, choose
from cgnn.model.conv import BatchNorm

Layers = Sequence[Tensor]
"""Features of atoms after the embedding and after each layer that is done (N, F)."""


class Remedy(nn.Module):
    """Nothing is changed.

    Called after each layer, it gives the features that the next one finds; hooks on it see every layer.

    Args:
        config: Width and depth of the network.
        strength: From 0, nothing, to 1.
    """

    usual = 1.0
    """Strength where none is set."""
    by_layer = ""
    """Name of the list of what is learned for each layer; what is in no such list serves all of them."""
    first_layer = 0
    """The layer of its first entry."""

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__()
        self.depth, self.strength = config.depth, strength

    @classmethod
    def layer_of(cls, name: str) -> int | None:
        """Return to which layer a tensor belongs, by its name; None: to all."""
        first, second = name.split(".")[:2]
        return cls.first_layer + int(second) if first == cls.by_layer else None

    def of_layer(self, number: int) -> list[nn.Module]:
        """Return what is learned for a layer, as modules that hold its tensors."""
        entries = getattr(self, self.by_layer) if self.by_layer else ()
        place = number - self.first_layer
        if not 0 <= place < len(entries):
            return []
        return [nn.ParameterList([entry]) if isinstance(entry := entries[place], nn.Parameter) else entry]

    def of_all(self) -> list[nn.Module]:
        """Return what is learned for all layers together, as modules that hold its tensors."""
        return [module for name, module in self.named_children() if name != self.by_layer]

    def weights(self, weight: Tensor) -> Tensor:
        """Return the weight of the edges' messages (E,), given the envelope."""
        return weight

    def taken(self, layers: Layers) -> Tensor:
        """Return what the next layer takes (N, F)."""
        return layers[-1]

    def mixed(self, x: Tensor, layers: Layers) -> Tensor:
        """Return what the layer's activation is applied to (N, F)."""
        return x

    def forward(self, h: Tensor, layers: Layers, graph: Any) -> Tensor:
        """Return the features after a layer (N, F), of what the layer itself gives."""
        return h

    def pooled(self, layers: Layers) -> Tensor:
        """Return the features that pooling and heads see (N, F)."""
        return layers[-1]


class Residual(Remedy):
    r"""The features before a layer are added: :math:`x' = x + s h_l`, for layers without a residual of their own.

    With strength 1 this is ``model.residual: true``.

    Source: He et al., Deep residual learning, CVPR 2016, arXiv:1512.03385.
    """

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__(config, strength)
        if config.residual:
            raise ConfigError("model.remedy: 'residual' is for layers without their own; set model.residual to false")

    def mixed(self, x: Tensor, layers: Layers) -> Tensor:
        """Return the sum with a share of the layer's input."""
        return x + self.strength * layers[-1]


class IdentitySkip(Remedy):
    r"""The features before a layer are added behind the activation instead of before it.

    .. math:: h_{l+1} = s\, h_l + a(m_l + (1 - s)\, h_l)

    (without ``model.residual`` :math:`s\, h_l + a(m_l)`). With s = 1 no activation stands on the way from the embedding
    to the pooling, so that depth costs neither features nor gradients.

    Source: He et al., Identity mappings in deep residual networks, ECCV 2016, arXiv:1603.05027; for graphs the ResGCN
        of Li et al., DeepGCNs, ICCV 2019, arXiv:1904.03751, eq. 4.
    """

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__(config, strength)
        self.has_residual = config.residual

    def mixed(self, x: Tensor, layers: Layers) -> Tensor:
        """Return what is left of the sum without a share of the layer's input."""
        return x - self.strength * layers[-1] if self.has_residual else x

    def forward(self, h: Tensor, layers: Layers, graph: Any) -> Tensor:
        """Return the features with that share of the layer's input."""
        return h + self.strength * layers[-1]


class LayerScale(IdentitySkip):
    r"""The same, and what the layer gives is scaled by channel.

    .. math:: h_{l+1} = s\, h_l + \big((1 - s) + s\, \lambda_l\big) \odot a(m_l + (1 - s)\, h_l)

    with learned :math:`\lambda_l`, 0.1 at first: a deep network begins as a shallow one, and its layers come in as far
    as they are of use.

    Source: Touvron et al., Going deeper with image transformers, ICCV 2021, arXiv:2103.17239, eq. 4; with one number
        for each layer, which is zero at first, Bachlechner et al., ReZero is all you need, UAI 2021, arXiv:2003.04887.
    """

    start = 0.1
    by_layer = "scales"

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__(config, strength)
        self.scales = nn.ParameterList(torch.full((config.width,), self.start) for _ in range(config.depth))

    def forward(self, h: Tensor, layers: Layers, graph: Any) -> Tensor:
        """Return a share of the layer's input and, scaled, what it gives."""
        scale = 1 - self.strength + self.strength * self.scales[len(layers) - 1]
        return super().forward(scale * h, layers, graph)


class Dense(Remedy):
    r"""A layer takes the features of all layers before it, concatenated and brought back to the width.

    .. math:: (1 - s)\, h_l + s\, W_l [h_0, \ldots, h_l]

    Source: Huang et al., Densely connected convolutional networks, CVPR 2017, arXiv:1608.06993; for graphs Li et al.,
        DeepGCNs, ICCV 2019, arXiv:1904.03751.
    """

    by_layer = "joins"
    first_layer = 1  # the one before has nothing before it but what it takes anyway

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__(config, strength)
        self.joins = nn.ModuleList(nn.Linear(config.width * n, config.width) for n in range(2, config.depth + 1))

    def taken(self, layers: Layers) -> Tensor:
        """Return a mixture of the last features and of all."""
        if len(layers) == 1:
            return layers[-1]
        return torch.lerp(layers[-1], self.joins[len(layers) - 2](torch.cat(list(layers), dim=1)), self.strength)


class InitialResidual(Remedy):
    r"""Initial residual and identity mapping.

    .. math:: x' = \big((1 - s)\, x + s\, h_0\big) \big((1 - \beta_l) I + \beta_l W_l\big), \quad
        \beta_l = \min(\ln(5 s / l + 1), 1)

    with :math:`l = 1 \ldots L`; s = 0.1 gives the :math:`\alpha = 0.1` and :math:`\lambda = 0.5` of the source.

    Source: Chen et al., Simple and deep graph convolutional networks (GCNII), ICML 2020, arXiv:2007.02133, eq. 5.
    """

    usual = 0.1
    by_layer = "maps"

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__(config, strength)
        self.maps = nn.ModuleList(nn.Linear(config.width, config.width, bias=False) for _ in range(config.depth))

    def mixed(self, x: Tensor, layers: Layers) -> Tensor:
        """Return the mixture with the embedding, mapped almost onto itself."""
        beta = min(math.log(5 * self.strength / len(layers) + 1), 1.0)
        mixture = torch.lerp(x, layers[0], self.strength)
        return torch.lerp(mixture, self.maps[len(layers) - 1](mixture), beta)


class Jumping(Remedy):
    r"""Pooling sees the features of all layers, concatenated: :math:`(1 - s)\, h_L + s\, W [h_0, \ldots, h_L]`.

    Source: Xu et al., Representation learning on graphs with jumping knowledge networks, ICML 2018,
        arXiv:1806.03536 (PyG's ``JumpingKnowledge``).
    """

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__(config, strength)
        self.join = JumpingKnowledge("cat")
        self.out = nn.Linear(config.width * (config.depth + 1), config.width)

    def pooled(self, layers: Layers) -> Tensor:
        """Return a mixture of the last features and of all."""
        return torch.lerp(layers[-1], self.out(self.join(list(layers))), self.strength)


class PairNorm(Remedy):
    r"""The atoms of a crystal are kept apart: their distance from the crystal's mean is brought to a fixed size.

    .. math:: h_i' = (1 - s)\, h_i + s \Big(\bar h + \sqrt F\, \frac{h_i - \bar h}
        {\sqrt{\epsilon F + \frac1N \sum_j \lVert h_j - \bar h \rVert^2}}\Big), \quad \epsilon = 0.01

    The source drops the mean, which labels of single nodes do not need; the mean is what a pooled network predicts
    from. The large epsilon keeps atoms together that only rounding tells apart.

    Source: Zhao and Akoglu, PairNorm: tackling oversmoothing in GNNs, ICLR 2020, arXiv:1909.12223 (PyG's
        ``PairNorm``).
    """

    usual = 0.5

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__(config, strength)
        self.norm = Centring(scale=config.width**0.5, eps=0.01 * config.width)

    def forward(self, h: Tensor, layers: Layers, graph: Any) -> Tensor:
        """Return the features at their new distance from the mean."""
        mean = scatter(h, graph.batch, dim=0, dim_size=graph.num_graphs, reduce="mean")
        away: Tensor = self.norm(h, graph.batch, graph.num_graphs)
        return torch.lerp(h, mean.index_select(0, graph.batch) + away, self.strength)


class DropEdge(Remedy):
    """In training a share s of the edges, drawn anew for each batch, carries no message; the others carry more.

    What they carry more makes up for it in the mean. The statistics of the pair normalisation see all edges.

    Source: Rong et al., DropEdge: towards deep graph convolutional networks on node classification, ICLR 2020,
        arXiv:1907.10903, there without the compensation.
    """

    usual = 0.1

    def weights(self, weight: Tensor) -> Tensor:
        """Return the weights, zero for edges that were drawn."""
        return functional.dropout(weight, self.strength, self.training)


class DiffGroupNorm(Remedy):
    r"""Atoms are softly assigned to groups, each of which is normalised on its own.

    .. math:: h' = h + s \sum_g \mathrm{BatchNorm}(S_g \odot h), \quad S = \mathrm{softmax}(h W)

    Source: Zhou et al., Towards deeper graph neural networks with differentiable group normalization, NeurIPS 2020,
        arXiv:2006.06972 (PyG's ``DiffGroupNorm``).
    """

    usual = 0.05
    by_layer = "norms"
    groups = 10

    def __init__(self, config: ModelConfig, strength: float) -> None:
        super().__init__(config, strength)
        self.norms = nn.ModuleList(GroupNorm(config.width, self.groups, strength) for _ in range(config.depth))
        for norm in self.norms:  # PyG's own stops on a batch with a single atom
            norm.norm = BatchNorm(self.groups * config.width)

    def forward(self, h: Tensor, layers: Layers, graph: Any) -> Tensor:
        """Return the features with those normalised by group added."""
        normalised: Tensor = self.norms[len(layers) - 1](h)
        return normalised


class StochasticDepth(Remedy):
    r"""In training a layer is skipped for a crystal with the probability :math:`p_l = s\, l / L`.

    In prediction it counts with the probability that it was not: :math:`h_l + (1 - p_l)(h_{l+1} - h_l)`.

    Source: Huang et al., Deep networks with stochastic depth, ECCV 2016, arXiv:1603.09382, eq. 2 to 5; there for whole
        batches.
    """

    usual = 0.2

    def forward(self, h: Tensor, layers: Layers, graph: Any) -> Tensor:
        """Return the features, for crystals that were drawn those of before the layer."""
        skipped = self.strength * len(layers) / self.depth
        if not self.training:
            return torch.lerp(h, layers[-1], skipped)
        # drawn on the CPU, so that the draws are the same on every device
        is_kept = (torch.rand(graph.num_graphs) >= skipped).to(h.device).index_select(0, graph.batch)
        return torch.where(is_kept[:, None], h, layers[-1])


class NoisyNodes(Remedy):
    """Atoms are moved in training and the network also learns whence; s is the weight of that loss.

    Nothing changes in the network itself: what is learned is changed by `cgnn.train.ways.noisy.NoisyNodes`.

    Source: Godwin et al., Simple GNN regularisation for 3D molecular property prediction and beyond, ICLR 2022,
        arXiv:2106.07971.
    """

    usual = 0.1


REMEDIES: dict[str, type[Remedy]] = {
    "none": Remedy,
    "residual": Residual,
    "identity_skip": IdentitySkip,
    "layer_scale": LayerScale,
    "dense": Dense,
    "initial_residual": InitialResidual,
    "jumping": Jumping,
    "pair_norm": PairNorm,
    "drop_edge": DropEdge,
    "group_norm": DiffGroupNorm,
    "stochastic_depth": StochasticDepth,
    "noisy_nodes": NoisyNodes,
}


def strength_of(config: ModelConfig) -> float:
    """Return the strength of the settings' remedy: the one that is set, or its usual one."""
    kind = choose(REMEDIES, config.remedy, "remedy")
    return kind.usual if config.remedy_strength is None else config.remedy_strength


def build_remedy(config: ModelConfig) -> Remedy:
    """Return the remedy of the settings."""
    return choose(REMEDIES, config.remedy, "remedy")(config, strength_of(config))
