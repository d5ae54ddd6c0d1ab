"""The kernel for edges with terms of their own against the formulas written out, and networks with and without it."""

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
from cgnn.model.edgewise import EdgeList, edge_hidden, edge_messages, kernel
from cgnn.model.gate import ACTIVATIONS, Affine

pytestmark = pytest.mark.skipif(kernel() is None, reason="the kernels were not compiled")

ATOMS = 150
"""More than the atoms over which the kernel sums in single precision."""
CRYSTALS = [bulk("Cu"), bulk("NaCl", "rocksalt", a=5.64, cubic=True), bulk("ZnS", "zincblende", a=5.41)]
FUNCTIONS = {"softplus": functional.softplus, "silu": functional.silu, "relu": torch.relu}


def edge_list(degree: int = 20) -> EdgeList:
    """Return edges with random sources; the third atom has none."""
    counts = torch.randint(0, degree, (ATOMS,))
    counts[2] = 0
    number = int(counts.sum())
    ptr = functional.pad(counts.cumsum(0), (1, 0))
    return EdgeList(ptr, torch.randint(0, ATOMS, (number,), dtype=torch.int32), torch.rand(number))


def pairs_by_formula(target: Tensor, source: Tensor, edge: Tensor, edges: EdgeList) -> tuple[Tensor, Tensor]:
    """Return the target atoms (E,) and the pair vectors (E, C)."""
    to = torch.repeat_interleave(torch.arange(ATOMS), edges.ptr.diff())
    return to, target[to] + source[edges.source.long()] + edge


def hidden_by_formula(target: Tensor, source: Tensor, edge: Tensor, edges: EdgeList, activation: str) -> Tensor:
    return FUNCTIONS[activation](pairs_by_formula(target, source, edge, edges)[1])


def messages_by_formula(
    target: Tensor, source: Tensor, edge: Tensor, edges: EdgeList, norm: Affine, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    to, pair = pairs_by_formula(target, source, edge, edges)
    mean = pair.mean(0) if norm.mean is None else norm.mean.double()
    variance = pair.var(0, unbiased=False) if norm.variance is None else norm.variance.double()
    gate, core = ((pair - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias).chunk(2, dim=1)
    messages = torch.sigmoid(gate) * FUNCTIONS[activation](core) * edges.weight.double()[:, None]
    return torch.zeros(ATOMS, gate.shape[1], dtype=torch.float64).index_add(0, to, messages), mean, variance


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(float(expected.detach().abs().max()), 1e-30)
    torch.testing.assert_close(found.detach().double(), expected.detach().double(), rtol=0, atol=tolerance * scale)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", [1, 5, 32, 64])
def test_hidden_layers_against_the_formula(channels, activation, threads):
    torch.manual_seed(channels)
    edges = edge_list()
    inputs = [torch.randn(rows, channels) * 2 for rows in (ATOMS, ATOMS, len(edges.source))]
    slope = torch.randn(len(edges.source), channels)
    results = []
    for function, dtype in ((edge_hidden, torch.float32), (hidden_by_formula, torch.float64)):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
        hidden = function(*leaves, edges, activation)
        hidden.backward(slope.to(dtype))
        results.append([hidden, *(leaf.grad for leaf in leaves)])
    # an argument of relu within rounding of zero may fall on its other side
    tolerance = 1e-2 if activation == "relu" else 3e-6
    for found, expected in zip(*results, strict=True):
        close(found, expected, tolerance)


@pytest.mark.parametrize("is_fixed", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [1, 5, 16, 64])
def test_messages_against_the_formula(width, activation, is_fixed, threads):
    torch.manual_seed(width)
    edges = edge_list()
    inputs = [torch.randn(rows, 2 * width) * 2 + 3 for rows in (ATOMS, ATOMS, len(edges.source))]
    weight, bias = torch.rand(2 * width) + 0.5, torch.randn(2 * width)
    moments = (torch.randn(2 * width), torch.rand(2 * width) + 0.5) if is_fixed else (None, None)
    slope = torch.randn(ATOMS, width)
    results = []
    for function, dtype in ((edge_messages, torch.float32), (messages_by_formula, torch.float64)):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (*inputs, weight, bias)]
        outputs = function(*leaves[:3], edges, Affine(*leaves[3:], *moments, 1e-5), activation)
        outputs[0].backward(slope.to(dtype))
        results.append([*outputs, *(leaf.grad for leaf in leaves)])
    tolerance = 1e-2 if activation == "relu" else 1e-5
    for found, expected in zip(*results, strict=True):
        close(found, expected, tolerance)


def test_a_mean_far_from_zero_leaves_the_variance_right():
    torch.manual_seed(0)
    edges = edge_list()
    inputs = [torch.randn(rows, 8) + 1000 for rows in (ATOMS, ATOMS, len(edges.source))]
    norm = Affine(torch.ones(8), torch.zeros(8), None, None, 1e-5)
    found = edge_messages(*inputs, edges, norm, "silu")
    expected = messages_by_formula(*(tensor.double() for tensor in inputs), edges, norm, "silu")
    # the pair vectors themselves are rounded to 2e-4
    close(found[2], expected[2], 1e-4)


def test_the_same_threads_give_the_same_bits(threads):
    torch.manual_seed(0)
    edges = edge_list()
    inputs = [torch.randn(rows, 32, requires_grad=True) for rows in (ATOMS, ATOMS, len(edges.source))]
    norm = Affine(torch.ones(32), torch.zeros(32), None, None, 1e-5)

    def gradients() -> list[Tensor]:
        hidden = edge_hidden(*inputs, edges, "softplus")
        messages = edge_messages(*inputs[:2], hidden, edges, norm, "softplus")[0]
        return [messages, *torch.autograd.grad(messages.square().sum(), inputs)]

    assert all(torch.equal(first, second) for first, second in zip(gradients(), gradients(), strict=True))


LAYERS = [
    {"message_depth": 2},
    {"message_depth": 3},
    {"edge_updates": True},
    {"edge_updates": True, "message_depth": 3, "edge_width": 10},
    {"edge_updates": True, "message_depth": 2, "activation": "silu", "pair_norm": "none"},
    {"edge_updates": True, "message_depth": 2, "norm": "layer", "residual": False},
]


def settings(**model: object) -> configs.Config:
    target = {"name": "bulk_modulus", "unit": "GPa", "transform": "log10"}
    return configs.build({"targets": [target], "model": {"width": 16, "depth": 3, **model}})


@pytest.mark.parametrize("options", LAYERS, ids=str)
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
            monkeypatch.setattr(networks, "edgewise_kernel", lambda: None)
        assert (model._edges(batch, torch.float32).list is not None) == has_kernel
        losses.append(model.loss(model(batch), batch, "mse"))
        losses[-1].backward()
    close(losses[0], losses[1], 5e-6)
    # Some gradients are zero but for rounding (a bias before a normalisation), hence one scale for all.
    scale = max(float(parameter.grad.abs().max()) for parameter in second.parameters())
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in second.parameters())
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=2e-5 * scale, msg=name)
    # Of the two it is torch's that errs by up to 1e-5 of a variance; the kernel is five times nearer to float64.
    for (name, ours), theirs in zip(first.named_buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_a_folded_network_gives_the_same_numbers(options):
    config = settings(**options)
    torch.manual_seed(4)
    model = CrystalGNN(config.model, config.targets)
    batches = [collate([GraphBuilder().arrays(atoms)]) for atoms in CRYSTALS]
    for batch in batches:
        model.train()(batch)
    folded = model.eval().folded()
    with torch.no_grad():
        for batch in batches:
            close(folded(batch)["bulk_modulus"], model(batch)["bulk_modulus"], 5e-6)


@pytest.mark.parametrize(
    ("options", "is_taken"),
    [({}, True), ({"pair_norm": "layer"}, False), ({"gaussian_width": 0.01}, True), ({"width": 600}, False)],
    ids=str,
)
def test_the_kernel_is_left_where_it_can_not_serve(options, is_taken):
    config = settings(message_depth=2, **options)
    model = CrystalGNN(config.model, config.targets).eval()
    batch = collate([GraphBuilder().arrays(CRYSTALS[1])])
    assert (model._edges(batch, torch.float32).list is not None) == is_taken
    assert model._edges(batch, torch.float64).list is None
    unsorted = batch.clone()
    unsorted.edge_index = batch.edge_index.flip(1)
    assert model._edges(unsorted, torch.float32).list is None
    batch.pos.requires_grad_()
    assert model._edges(batch, torch.float32).list is None
