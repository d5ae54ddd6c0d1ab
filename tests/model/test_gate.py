"""The compiled kernel against the formula written out, against the plain layer, and in its behaviour."""

import copy

import pytest
import torch
from ase.build import bulk
from torch import Tensor
from torch.nn import functional

from cgnn import config as configs
from cgnn.data.dataset import collate
from cgnn.graph import GraphBuilder
from cgnn.model import CrystalGNN
from cgnn.model import network as networks
from cgnn.model.embed import GaussianBasis
from cgnn.model.gate import ACTIVATIONS, Affine, EdgePlan, gated_messages, kernel

pytestmark = pytest.mark.skipif(kernel() is None, reason="the kernels were not compiled")

ATOMS, ROWS = 40, 60
CRYSTALS = [bulk("Cu"), bulk("NaCl", "rocksalt", a=5.64, cubic=True), bulk("ZnS", "zincblende", a=5.41)]


def plan(degree: int = 70) -> EdgePlan:
    """Return edges with random sources and distances; the third atom has none."""
    counts = torch.randint(0, degree, (ATOMS,))
    counts[2] = 0
    edges = int(counts.sum())
    return EdgePlan(
        ptr=functional.pad(counts.cumsum(0), (1, 0)),
        source=torch.randint(0, ATOMS, (edges,), dtype=torch.int32),
        cell=torch.randint(0, ROWS - 3, (edges,), dtype=torch.int32),
        place=torch.rand(edges),
        weight=torch.rand(edges),
        table=torch.zeros(ROWS, 1),
    )


def by_formula(
    target: Tensor, source: Tensor, grid: Tensor, edges: EdgePlan, norm: Affine, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the kernel must return, edge by edge arrays and torch's own gradients."""
    place = edges.place.double()[:, None]
    nodes = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    filters = torch.zeros(len(place), grid.shape[1], dtype=torch.float64)
    for k, node in enumerate(nodes):  # Lagrange's polynomials through four neighbouring rows
        others = [other for other in nodes if other != node]
        factor = torch.stack([(place - other) / (node - other) for other in others]).prod(0)
        filters = filters + factor * grid[edges.cell.long() + k]
    to = torch.repeat_interleave(torch.arange(ATOMS), edges.ptr.diff())
    pair = target[to] + source[edges.source.long()] + filters
    is_fixed = norm.mean is not None
    mean = norm.mean.double() if is_fixed else pair.mean(0)
    variance = norm.variance.double() if is_fixed else pair.var(0, unbiased=False)
    scaled = (pair - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    gate, core = scaled.chunk(2, dim=1)
    core = {"softplus": functional.softplus, "silu": functional.silu, "relu": torch.relu}[activation](core)
    messages = torch.sigmoid(gate) * core * edges.weight.double()[:, None]
    return torch.zeros(ATOMS, gate.shape[1], dtype=torch.float64).index_add(0, to, messages), mean, variance


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    found, expected = found.detach(), expected.detach()
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * max(scale, 1e-30))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("is_fixed", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [1, 5, 16, 64])
def test_values_and_gradients_against_the_formula(width, activation, is_fixed, threads):
    torch.manual_seed(width)
    edges = plan()
    inputs = [torch.randn(rows, 2 * width) * 2 + 3 for rows in (ATOMS, ATOMS, ROWS)]
    weight, bias = torch.rand(2 * width) + 0.5, torch.randn(2 * width)
    moments = (torch.randn(2 * width), torch.rand(2 * width) + 0.5) if is_fixed else (None, None)
    slope = torch.randn(ATOMS, width)
    results = []
    before = torch.get_num_threads()
    for function, dtype in ((gated_messages, torch.float32), (by_formula, torch.float64)):
        torch.set_num_threads(threads)
        leaves = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in (*inputs, weight, bias)]
        outputs = function(*leaves[:3], edges, Affine(*leaves[3:], *moments, 1e-5), activation)
        outputs[0].backward(slope.to(dtype))
        torch.set_num_threads(before)
        results.append([*outputs, *(leaf.grad for leaf in leaves)])
    # an argument of relu within rounding of zero may fall on its other side
    tolerance = 1e-2 if activation == "relu" else 5e-6
    for found, expected in zip(*results, strict=True):
        close(found, expected, tolerance)


def test_extreme_arguments_saturate():
    """Gates far beyond where an exponential overflows: open or shut, and never NaN."""
    edges = plan()
    ends = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])
    grid = torch.cat([ends, ends.flip(0)]).repeat(ROWS, 1)
    zero = torch.zeros(ATOMS, 14)
    for activation in ACTIVATIONS:
        norm = Affine.identity(14)
        found = gated_messages(zero, zero, grid, edges, norm, activation)[0]
        close(found, by_formula(zero, zero, grid.double(), edges, norm, activation)[0])


def test_nan_is_passed_on():
    edges, norm = plan(), Affine.identity(8)
    target, source, grid = torch.zeros(ATOMS, 8), torch.zeros(ATOMS, 8), torch.zeros(ROWS, 8)
    target[5, 1] = torch.nan
    found = gated_messages(target, source, grid, edges, norm, "softplus")[0]
    assert torch.isnan(found[5, 1])
    assert torch.isnan(found).sum() == 1


def test_the_same_threads_give_the_same_bits():
    torch.manual_seed(0)
    edges = plan()
    inputs = [torch.randn(rows, 32, requires_grad=True) for rows in (ATOMS, ATOMS, ROWS)]
    norm = Affine(torch.ones(32), torch.zeros(32), None, None, 1e-5)

    def gradients() -> list[Tensor]:
        messages = gated_messages(*inputs, edges, norm, "softplus")[0]
        return [messages, *torch.autograd.grad(messages.square().sum(), inputs)]

    assert all(torch.equal(first, second) for first, second in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("width", [None, 0.05, 1.0])
def test_interpolated_gaussians(width):
    """Between and beyond the grid's points, cubic interpolation gives the Gaussians to single precision."""
    basis = GaussianBasis(41, 0.0, 8.0, width)
    distance = torch.linspace(0, 12, 5001, dtype=torch.float64)
    cell, place = basis.on_grid(distance)
    edges = EdgePlan(torch.tensor([0, len(distance)]), torch.zeros_like(cell), cell, place, place, basis.table())
    found = torch.stack([basis.table()[cell.long() + k] for k in range(4)])
    u = place[:, None]
    factors = (-u * (u - 1) * (u - 2) / 6, (u * u - 1) * (u - 2) / 2, -u * (u + 1) * (u - 2) / 2, u * (u * u - 1) / 6)
    interpolated = sum(factor * rows for factor, rows in zip(factors, found, strict=True))
    torch.testing.assert_close(interpolated.double(), basis.double()(distance), rtol=0, atol=1e-6)
    close(edges.by_row.sum(), torch.tensor(float(len(distance))))


def settings(**model: object) -> configs.Config:
    target = {"name": "bulk_modulus", "unit": "GPa", "transform": "log10"}
    return configs.build({"targets": [target], "model": {"width": 16, "depth": 3, **model}})


@pytest.mark.parametrize(
    "options",
    [{}, {"pair_norm": "none"}, {"activation": "silu"}, {"activation": "relu"}, {"residual": False, "norm": "layer"}],
    ids=str,
)
@pytest.mark.parametrize("is_training", [True, False])
def test_a_network_with_and_without_the_kernel(options, is_training, monkeypatch):
    config = settings(**options)
    torch.manual_seed(1)
    first = CrystalGNN(config.model, config.targets).train(is_training)
    second = copy.deepcopy(first)
    batch = collate([GraphBuilder().arrays(atoms) for atoms in CRYSTALS])
    batch.y_bulk_modulus = torch.linspace(50, 200, len(CRYSTALS), dtype=torch.float64)
    losses = []
    for model, has_kernel in ((first, True), (second, False)):
        if not has_kernel:
            monkeypatch.setattr(networks, "kernel", lambda: None)
        losses.append(model.loss(model(batch), batch, "mse"))
        losses[-1].backward()
    close(losses[0], losses[1])
    # Some gradients are zero but for rounding (a bias before a normalisation), hence one scale for all.
    scale = max(float(parameter.grad.abs().max()) for parameter in second.parameters())
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=2e-5 * scale, msg=name)
    for (name, ours), theirs in zip(first.named_buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("options", "is_taken"),
    [({}, True), ({"pair_norm": "layer"}, False), ({"gaussian_width": 0.01}, False), ({"width": 600}, False)],
    ids=str,
)
def test_the_kernel_is_left_where_it_can_not_serve(options, is_taken):
    config = settings(**options)
    model = CrystalGNN(config.model, config.targets).eval()
    batch = collate([GraphBuilder().arrays(CRYSTALS[1])])
    assert (model._edges(batch, torch.float32).plan is not None) == is_taken
    assert model._edges(batch, torch.float64).plan is None
    unsorted = batch.clone()
    unsorted.edge_index = batch.edge_index.flip(1)
    assert model._edges(unsorted, torch.float32).plan is None
    batch.pos.requires_grad_()
    assert model._edges(batch, torch.float32).plan is None
    with torch.no_grad():
        assert torch.isfinite(model(unsorted)["bulk_modulus"]).all()


def test_a_folded_network_with_the_kernel():
    """Its filters are kept from batch to batch, on float32 weights."""
    config = settings()
    torch.manual_seed(4)
    model = CrystalGNN(config.model, config.targets)
    batches = [collate([GraphBuilder().arrays(atoms)]) for atoms in CRYSTALS]
    for batch in batches:
        model.train()(batch)
    folded = model.eval().folded()
    with torch.no_grad():
        for batch in batches:
            close(folded(batch)["bulk_modulus"], model(batch)["bulk_modulus"], 2e-6)
