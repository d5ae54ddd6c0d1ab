r"""Gated messages in one pass over the edges, by the compiled kernel ``cgnn/kernels/gate.c``.

The plain way writes several arrays of edges times features for each convolution and reads them again in the
backward pass; on a CPU that traffic is most of the time of a step. Here nothing of that size is written. The
filter :math:`W_e e(d)` is a function of the distance alone, so it is evaluated on a fine grid of distances and
interpolated by cubic polynomials; the difference stays below single precision.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cgnn.kernels import load

ACTIVATIONS = {"softplus": 0, "silu": 1, "relu": 2}
"""Activations that the kernel knows, by the number it knows them by."""
MAX_WIDTH = 512


class _Edges(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("atoms", "rows", "width", "activation")),
        *((name, ctypes.c_void_p) for name in ("target", "source", "grid", "ptr", "from", "cell", "place", "weight")),
    ]


def kernel() -> Any:
    """Return the compiled library, or None where it was not built."""
    library = load("gate")
    if library is not None and not library.gate_forward.argtypes:
        edges, pointer, integer = ctypes.POINTER(_Edges), ctypes.c_void_p, ctypes.c_int64
        library.gate_forward.argtypes = [edges, *[pointer] * 3, integer]
        library.gate_forward.restype = None
        library.gate_sums.argtypes = [edges, *[pointer] * 9, integer]
        library.gate_combine.argtypes = [*[pointer] * 6, integer, integer]
        library.gate_combine.restype = None
    return library


class Ends:
    """Where the edges of a batch begin and end."""

    ptr: Tensor
    source: Tensor

    @cached_property
    def by_target(self) -> Tensor:
        """Number of edges into each atom (N,)."""
        return self.ptr.diff().float()

    @cached_property
    def by_source(self) -> Tensor:
        """Number of edges out of each atom (N,)."""
        return torch.bincount(self.source, minlength=len(self.ptr) - 1).float()


@dataclass
class EdgePlan(Ends):
    """The edges of a batch as the kernel wants them; one for all convolutions.

    Args:
        ptr: First edge of each target atom (N + 1,), int64.
        source: Source atoms (E,), int32.
        cell: First of the four grid rows between which an edge's distance lies (E,), int32.
        place: Where between the second and the third of them (E,), 0 to 1.
        weight: Envelope (E,).
        table: Edge features at the grid's distances (M, K).
    """

    ptr: Tensor
    source: Tensor
    cell: Tensor
    place: Tensor
    weight: Tensor
    table: Tensor

    @cached_property
    def by_row(self) -> Tensor:
        """Sum of the interpolation coefficients on each grid row (M,)."""
        u = self.place
        coefficients = (
            -u * (u - 1) * (u - 2) / 6,
            (u + 1) * (u - 1) * (u - 2) / 2,
            -(u + 1) * u * (u - 2) / 2,
            (u + 1) * u * (u - 1) / 6,
        )
        total = torch.zeros(len(self.table))
        for offset, coefficient in enumerate(coefficients):
            total.index_add_(0, self.cell + offset, coefficient)
        return total


@dataclass
class Affine:
    """Normalisation of the pair vector as an affine map, with what its gradient needs.

    Args:
        weight: Learned factor (2F,).
        bias: Learned offset (2F,).
        mean: Fixed mean (2F,), or None to take mean and variance from the edges.
        variance: Fixed variance (2F,).
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor | None
    variance: Tensor | None
    eps: float

    @classmethod
    def identity(cls, channels: int) -> Affine:
        """Return the map that changes nothing."""
        zero, one = torch.zeros(channels), torch.ones(channels)
        return cls(one, zero, zero, one, 0.0)


def gated_messages(
    target: Tensor, source: Tensor, grid: Tensor, plan: EdgePlan, norm: Affine, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the sum of the gated messages to each atom, and mean and variance of the pair vectors.

    .. math::
        M_i = \sum_j w_{ij}\, \mathrm{sigmoid}(f_{ij}) \odot a(c_{ij}), \quad
        [f, c] = \mathrm{norm}(T_i + S_j + G(d_{ij}))

    Args:
        target: T (N, 2F).
        source: S (N, 2F).
        grid: G on the grid of distances (M, 2F).
        plan: The edges.
        norm: Normalisation of the pair vector.
        activation: Entry of `ACTIVATIONS`.

    Returns:
        Messages (N, F); mean and biased variance of the pair vectors (2F,), without gradients.
    """
    number = ACTIVATIONS[activation]
    return _Gate.apply(target, source, grid, norm.weight, norm.bias, plan, norm, number)  # type: ignore[no-untyped-call]


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        source: Tensor,
        grid: Tensor,
        weight: Tensor,
        bias: Tensor,
        plan: EdgePlan,
        norm: Affine,
        activation: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        target, source, grid = target.contiguous(), source.contiguous(), grid.contiguous()
        ctx.call = call = _Call(target, source, grid, plan, activation)
        ctx.is_fixed = norm.mean is not None
        if norm.mean is not None and norm.variance is not None:
            shift, mean, variance = norm.mean, norm.mean, norm.variance
            sums: tuple[Tensor, ...] = ()
        else:
            edges = len(plan.source)
            # near the mean, so that the variance does not drown in the square of the mean
            shift = (plan.by_target @ target + plan.by_source @ source + plan.by_row @ grid) / edges
            first, second, *sums_ = call.sums(shift)
            sums = tuple(sums_)
            mean = (shift + first / edges).float()
            variance = (second / edges - (first / edges) ** 2).clamp(min=0).float()
        spread = (variance + norm.eps).sqrt()
        scale = weight / spread
        offset = bias - scale * mean
        ctx.save_for_backward(scale, offset, shift, mean, spread, *sums)
        ctx.mark_non_differentiable(mean, variance)
        return call.forward(scale, offset), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scale, offset, shift, mean, spread, *sums = ctx.saved_tensors
        call, delta = ctx.call, (mean - shift).double()
        first, second, *gradients = call.sums(shift, scale, offset, slope.contiguous())
        d_weight = (second - delta * first) / spread
        if ctx.is_fixed:
            gradients = [gradient * scale for gradient in gradients]
        else:
            edges = len(call.plan.source)
            to_value = -scale * d_weight / (edges * spread)
            constant = -scale * first / edges - to_value * delta
            counts = (call.plan.by_target, call.plan.by_source, call.plan.by_row)
            for gradient, other, count in zip(gradients, sums, counts, strict=True):
                call.combine(gradient, other, count, scale, constant.float(), to_value.float())
        return *gradients, d_weight.float(), first.float(), None, None, None


class _Call:
    """The kernel's functions on one convolution's tensors."""

    def __init__(self, target: Tensor, source: Tensor, grid: Tensor, plan: EdgePlan, activation: int) -> None:
        self.tensors, self.plan = (target, source, grid), plan
        self.width = target.shape[1] // 2
        order = (target, source, grid, plan.ptr, plan.source, plan.cell, plan.place, plan.weight)
        numbers = (len(target), len(grid), self.width, activation)
        self._edges = _Edges(*numbers, *(tensor.data_ptr() for tensor in order))
        self._threads = torch.get_num_threads()

    def forward(self, scale: Tensor, offset: Tensor) -> Tensor:
        out = torch.empty(len(self.tensors[0]), self.width)
        scale, offset = scale.contiguous(), offset.contiguous()
        kernel().gate_forward(self._edges, scale.data_ptr(), offset.data_ptr(), out.data_ptr(), self._threads)
        return out

    def sums(
        self, shift: Tensor, scale: Tensor | None = None, offset: Tensor | None = None, slope: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        first, second = (torch.empty(2 * self.width, dtype=torch.float64) for _ in range(2))
        sums = [torch.empty_like(tensor) for tensor in self.tensors]
        given = [tensor.data_ptr() if tensor is not None else None for tensor in (scale, offset, shift, slope)]
        found = [tensor.data_ptr() for tensor in (first, second, *sums)]
        if kernel().gate_sums(self._edges, *given, *found, self._threads):
            raise MemoryError("not enough memory for the sums over edges")
        return (first, second, *sums)

    def combine(
        self, gradient: Tensor, other: Tensor, count: Tensor, scale: Tensor, constant: Tensor, slope: Tensor
    ) -> None:
        pointers = (tensor.data_ptr() for tensor in (gradient, other, count, scale, constant, slope))
        kernel().gate_combine(*pointers, len(gradient), 2 * self.width)
