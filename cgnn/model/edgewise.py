r"""Hidden layers and gated messages where each edge brings its own term, by ``cgnn/kernels/edgewise.c``.

Where edge features are more than a function of the distance, `cgnn.model.gate` can not look them up on a grid. The
products of matrices with them stay torch's; what comes after is one pass over the edges here, instead of the several
arrays of edges times features that torch writes and reads.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cgnn.kernels import load
from cgnn.model.gate import ACTIVATIONS, Affine, Ends


class _Edges(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("atoms", "channels", "activation")),
        *((name, ctypes.c_void_p) for name in ("target", "source", "edge", "ptr", "from", "weight")),
    ]


def kernel() -> Any:
    """Return the compiled library, or None where it was not built."""
    library = load("edgewise")
    if library is not None and not library.hidden_forward.argtypes:
        edges, pointer, integer = ctypes.POINTER(_Edges), ctypes.c_void_p, ctypes.c_int64
        library.hidden_forward.argtypes = [edges, pointer, integer]
        library.hidden_backward.argtypes = [edges, *[pointer] * 4, integer]
        library.edge_gate_forward.argtypes = [edges, *[pointer] * 3, integer]
        library.edge_gate_sums.argtypes = [edges, *[pointer] * 7, integer]
        library.edge_gate_through_norm.argtypes = [edges, *[pointer] * 7, integer]
        library.hidden_forward.restype = library.edge_gate_forward.restype = None
    return library


@dataclass
class EdgeList(Ends):
    """The edges of a batch as the kernel wants them; one for all convolutions.

    Args:
        ptr: First edge of each target atom (N + 1,), int64.
        source: Source atoms (E,), int32.
        weight: Envelope (E,).
    """

    ptr: Tensor
    source: Tensor
    weight: Tensor


def edge_hidden(target: Tensor, source: Tensor, edge: Tensor, edges: EdgeList, activation: str) -> Tensor:
    r"""Return a hidden layer for each edge.

    .. math:: x_{ij} = a(T_i + S_j + R_{ij})

    Args:
        target: T (N, C).
        source: S (N, C).
        edge: R (E, C).
        edges: The edges.
        activation: Entry of `cgnn.model.gate.ACTIVATIONS`.

    Returns:
        The layer's features (E, C).
    """
    hidden: Tensor = _Hidden.apply(target, source, edge, edges, ACTIVATIONS[activation])  # type: ignore[no-untyped-call]
    return hidden


def edge_messages(
    target: Tensor, source: Tensor, edge: Tensor, edges: EdgeList, norm: Affine, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the sum of the gated messages to each atom, and mean and variance of the pair vectors.

    .. math::
        M_i = \sum_j w_{ij}\, \mathrm{sigmoid}(f_{ij}) \odot a(c_{ij}), \quad
        [f, c] = \mathrm{norm}(T_i + S_j + R_{ij})

    Args:
        target: T (N, 2F).
        source: S (N, 2F).
        edge: R (E, 2F).
        edges: The edges.
        norm: Normalisation of the pair vector.
        activation: Entry of `cgnn.model.gate.ACTIVATIONS`.

    Returns:
        Messages (N, F); mean and biased variance of the pair vectors (2F,), without gradients.
    """
    number = ACTIVATIONS[activation]
    return _Messages.apply(target, source, edge, norm.weight, norm.bias, edges, norm, number)  # type: ignore[no-untyped-call]


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor, source: Tensor, edge: Tensor, edges: EdgeList, activation: int) -> Tensor:
        ctx.call = _Call(target, source, edge, edges, activation)
        return ctx.call.hidden()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.call.hidden_gradients(slope.contiguous()), None, None


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        source: Tensor,
        edge: Tensor,
        weight: Tensor,
        bias: Tensor,
        edges: EdgeList,
        norm: Affine,
        activation: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.call = call = _Call(target, source, edge, edges, activation)
        ctx.is_fixed = norm.mean is not None
        if norm.mean is not None and norm.variance is not None:
            shift, mean, variance = norm.mean, norm.mean, norm.variance
        else:
            shift = call.near_mean()
            first, second = call.sums(shift)
            mean = (shift + first / len(edge)).float()
            variance = (second / len(edge) - (first / len(edge)) ** 2).clamp(min=0).float()
        spread = (variance + norm.eps).sqrt()
        scale = weight / spread
        offset = bias - scale * mean
        ctx.save_for_backward(scale, offset, shift, mean, spread)
        ctx.mark_non_differentiable(mean, variance)
        return call.messages(scale, offset), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scale, offset, shift, mean, spread = ctx.saved_tensors
        call, delta = ctx.call, (mean - shift).double()
        by_edge = torch.empty_like(call.tensors[2])
        first, second = call.sums(shift, scale, offset, slope.contiguous(), by_edge)
        d_weight = (second - delta * first) / spread
        constant = factor = torch.zeros_like(first)
        if not ctx.is_fixed:
            factor = -scale * d_weight / (len(by_edge) * spread)
            constant = -scale * first / len(by_edge) - factor * delta
        gradients = call.through_norm(scale, constant.float(), factor.float(), shift, by_edge)
        return *gradients, d_weight.float(), first.float(), None, None, None


class _Call:
    """The kernel's functions on one layer's tensors."""

    _SAMPLE = 16
    """One edge in so many serves to find where the mean lies, about."""

    def __init__(self, target: Tensor, source: Tensor, edge: Tensor, edges: EdgeList, activation: int) -> None:
        self.tensors, self.edges = (target.contiguous(), source.contiguous(), edge.contiguous()), edges
        order = (*self.tensors, edges.ptr, edges.source, edges.weight)
        numbers = (len(target), target.shape[1], activation)
        self._edges = _Edges(*numbers, *(tensor.data_ptr() for tensor in order))
        self._threads = torch.get_num_threads()

    def hidden(self) -> Tensor:
        out = torch.empty_like(self.tensors[2])
        kernel().hidden_forward(self._edges, out.data_ptr(), self._threads)
        return out

    def hidden_gradients(self, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        target, source, edge = (torch.empty_like(tensor) for tensor in self.tensors)
        pointers = (tensor.data_ptr() for tensor in (slope, edge, target, source))
        _check(kernel().hidden_backward(self._edges, *pointers, self._threads))
        return target, source, edge

    def near_mean(self) -> Tensor:
        """Return about the mean of the pair vectors, so that the variance does not drown in its square."""
        target, source, edge = self.tensors
        per_atom = (self.edges.by_target @ target + self.edges.by_source @ source) / len(edge)
        return per_atom + edge[:: self._SAMPLE].mean(0)

    def messages(self, scale: Tensor, offset: Tensor) -> Tensor:
        target = self.tensors[0]
        out = torch.empty(len(target), target.shape[1] // 2)
        scale, offset = scale.contiguous(), offset.contiguous()
        kernel().edge_gate_forward(self._edges, scale.data_ptr(), offset.data_ptr(), out.data_ptr(), self._threads)
        return out

    def sums(
        self,
        shift: Tensor,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
        slope: Tensor | None = None,
        by_edge: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        first, second = (torch.empty(len(shift), dtype=torch.float64) for _ in range(2))
        given = [None if tensor is None else tensor.data_ptr() for tensor in (scale, offset, shift, slope)]
        found = [None if tensor is None else tensor.data_ptr() for tensor in (first, second, by_edge)]
        _check(kernel().edge_gate_sums(self._edges, *given, *found, self._threads))
        return first, second

    def through_norm(
        self, scale: Tensor, constant: Tensor, factor: Tensor, shift: Tensor, by_edge: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        target, source = (torch.empty_like(tensor) for tensor in self.tensors[:2])
        order = (scale, constant, factor, shift, by_edge, target, source)
        _check(kernel().edge_gate_through_norm(self._edges, *(tensor.data_ptr() for tensor in order), self._threads))
        return target, source, by_edge


def _check(status: int) -> None:
    if status:
        raise MemoryError("not enough memory for the sums over edges")
