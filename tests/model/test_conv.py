"""The gated convolution against its formula written out, and against PyG's layer where both agree."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch_geometric.nn import CGConv

from cgnn.errors import ConfigError
from cgnn.model.conv import ACTIVATIONS, NORMS, BatchNorm, Edges, EdgeUpdate, GatedConv

N, E, F, K = 7, 40, 5, 4


@pytest.fixture
def graph(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Atom features, edges sorted by target (the last atom has none), edge features, envelope."""
    target = np.sort(rng.integers(0, N - 1, E))
    edge_index = torch.from_numpy(np.stack([rng.integers(0, N, E), target]))
    h, e, w = (torch.from_numpy(rng.normal(size=shape)) for shape in [(N, F), (E, K), (E, 1)])
    return h, edge_index, e, torch.sigmoid(w)


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter and running statistic a value that matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.dtype.is_floating_point:
                values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(values.abs() + 0.5 if "var" in name else values)
    return module


def one_matrix(conv: GatedConv) -> tuple[Tensor, Tensor]:
    """Return W (2F, 2F + K) acting on [h_i, h_j, e_ij], and b (2F,)."""
    return torch.cat([conv.target.weight, conv.source.weight, conv.edge.weight], dim=1), conv.target.bias


def normalised(x: Tensor, norm: BatchNorm, train: bool) -> Tensor:
    mean, var = (x.mean(0), x.var(0, unbiased=False)) if train else (norm.running_mean, norm.running_var)
    return (x - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias


@pytest.mark.parametrize("train", [True, False])
def test_the_original_formula_with_one_matrix(train, graph):
    """Xie and Grossman, PRL 120, 145301, eq. 5, as in the published code: batch norms, softplus, residual."""
    h, edge_index, e, _ = graph
    conv = randomised(GatedConv(F, K).double())
    conv.train(train)
    matrix, bias = one_matrix(conv)
    expected_messages = torch.zeros(N, F, dtype=torch.float64)
    pairs = torch.stack([torch.cat([h[i], h[j], e[n]]) @ matrix.T + bias for n, (j, i) in enumerate(edge_index.T)])
    pairs = normalised(pairs, conv.pair_norm, train)
    for n, (_, i) in enumerate(edge_index.T):
        gate, core = pairs[n, :F], pairs[n, F:]
        expected_messages[i] += 1 / (1 + torch.exp(-gate)) * torch.log1p(torch.exp(core))
    expected = torch.log1p(torch.exp(h + normalised(expected_messages, conv.norm, train)))
    got = conv(h, Edges(edge_index, torch.ones(E, 1, dtype=torch.float64), e))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_option_against_the_formula(norm, activation, residual, graph):
    h, edge_index, e, weight = graph
    conv = randomised(GatedConv(F, K, "none", norm, activation, residual).double()).eval()
    matrix, bias = one_matrix(conv)
    function = {"softplus": softplus, "relu": torch.relu, "silu": lambda x: x * torch.sigmoid(x)}[activation]
    source, target = edge_index
    gate, core = (torch.cat([h[target], h[source], e], dim=1) @ matrix.T + bias).chunk(2, dim=1)
    messages = torch.zeros_like(h).index_add(0, target, torch.sigmoid(gate) * function(core) * weight)
    if norm == "batch":
        messages = normalised(messages, conv.norm, train=False)
    elif norm == "layer":
        centred = messages - messages.mean(1, keepdim=True)
        spread = torch.sqrt((centred**2).mean(1, keepdim=True) + conv.norm.eps)
        messages = centred / spread * conv.norm.weight + conv.norm.bias
    expected = function(h + messages if residual else messages)
    torch.testing.assert_close(conv(h, Edges(edge_index, weight, e)), expected, rtol=1e-12, atol=1e-12)


def test_pair_norm_by_layer(graph):
    h, edge_index, e, weight = graph
    conv = randomised(GatedConv(F, K, pair_norm="layer", norm="none").double())
    matrix, bias = one_matrix(conv)
    source, target = edge_index
    pair = torch.cat([h[target], h[source], e], dim=1) @ matrix.T + bias
    pair = nn.functional.layer_norm(pair, (2 * F,), conv.pair_norm.weight, conv.pair_norm.bias)
    gate, core = pair.chunk(2, dim=1)
    messages = torch.zeros_like(h).index_add(0, target, torch.sigmoid(gate) * softplus(core) * weight)
    torch.testing.assert_close(conv(h, Edges(edge_index, weight, e)), softplus(h + messages), rtol=1e-12, atol=1e-12)


def test_agrees_with_pyg_up_to_the_last_activation(graph):
    """PyG's ``CGConv`` has no pair norm and no activation after the residual: undo ours, log(exp(x) - 1)."""
    h, edge_index, e, _ = graph
    conv = randomised(GatedConv(F, K, pair_norm="none", norm="none").double())
    pyg = CGConv(F, dim=K, aggr="add").double()
    matrix, bias = one_matrix(conv)
    with torch.no_grad():
        for linear, rows in ((pyg.lin_f, slice(0, F)), (pyg.lin_s, slice(F, 2 * F))):
            linear.weight.copy_(matrix[rows])
            linear.bias.copy_(bias[rows])
    ours = conv(h, Edges(edge_index, torch.ones(E, 1, dtype=torch.float64), e))
    torch.testing.assert_close(torch.log(torch.expm1(ours)), pyg(h, edge_index, e), rtol=1e-10, atol=1e-10)


def test_agrees_with_pyg_with_its_batch_norm(graph):
    h, edge_index, e, _ = graph
    conv = randomised(GatedConv(F, K, pair_norm="none", norm="batch").double())
    pyg = CGConv(F, dim=K, aggr="add", batch_norm=True).double()
    matrix, bias = one_matrix(conv)
    with torch.no_grad():
        for linear, rows in ((pyg.lin_f, slice(0, F)), (pyg.lin_s, slice(F, 2 * F))):
            linear.weight.copy_(matrix[rows])
            linear.bias.copy_(bias[rows])
        pyg.bn.load_state_dict(conv.norm.state_dict())
    ours = conv(h, Edges(edge_index, torch.ones(E, 1, dtype=torch.float64), e))
    torch.testing.assert_close(torch.log(torch.expm1(ours)), pyg(h, edge_index, e), rtol=1e-9, atol=1e-9)


def test_weightless_edges_send_nothing(graph):
    h, edge_index, e, weight = graph
    conv = randomised(GatedConv(F, K).double()).eval()
    kept = weight.clone()
    kept[::3] = 0
    rest = torch.arange(E) % 3 != 0
    torch.testing.assert_close(
        conv(h, Edges(edge_index, kept, e)),
        conv(h, Edges(edge_index[:, rest], weight[rest], e[rest])),
        rtol=1e-12,
        atol=1e-12,
    )


def test_permuting_the_atoms_permutes_the_features(graph, rng):
    h, edge_index, e, weight = graph
    conv = randomised(GatedConv(F, K).double()).train()
    order = torch.from_numpy(rng.permutation(N))
    place = torch.argsort(order)
    torch.testing.assert_close(
        conv(h[order], Edges(place[edge_index], weight, e)),
        conv(h, Edges(edge_index, weight, e))[order],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("train", [True, False])
def test_no_edges(train, graph):
    h, _, e, weight = graph
    conv = randomised(GatedConv(F, K).double())
    conv.train(train)
    out = conv(h, Edges(torch.zeros(2, 0, dtype=torch.int64), weight[:0], e[:0]))
    assert out.shape == (N, F)
    assert torch.isfinite(out).all()


def test_gradients(graph):
    h, edge_index, e, weight = graph
    conv = randomised(GatedConv(F, K).double()).train()
    inputs = (h.requires_grad_(), e.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda h, e, w: conv(h, Edges(edge_index, w, e)), inputs)


def test_the_blocks_start_as_the_undivided_matrix():
    conv = GatedConv(64, 41)
    bound = (2 * 64 + 41) ** -0.5
    for parameter in (conv.target.weight, conv.target.bias, conv.source.weight, conv.edge.weight):
        assert parameter.abs().max() <= bound
    for parameter in (conv.target.weight, conv.source.weight, conv.edge.weight):
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("option", ["pair_norm", "norm", "activation"])
def test_unknown_names_are_refused(option):
    with pytest.raises(ConfigError, match=r"unknown .* 'bath'.*known: "):
        GatedConv(F, K, **{option: "bath"})


# Deeper messages and edge updates


def one_hidden(pair: nn.Module, h: Tensor, edge_index: Tensor, e: Tensor) -> Tensor:
    """Return a(W [h_i, h_j, e_ij] + b) with one matrix (E, H)."""
    matrix = torch.cat([pair.target.weight, pair.source.weight, pair.edge.weight], dim=1)
    source, target = edge_index
    return softplus(torch.cat([h[target], h[source], e], dim=1) @ matrix.T + pair.target.bias)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("message_depth", [2, 3])
def test_deeper_messages_against_the_formula(message_depth, train, graph):
    h, edge_index, e, weight = graph
    conv = randomised(GatedConv(F, K, norm="none", message_depth=message_depth).double()).train(train)
    matrix, bias = one_matrix(conv)
    source, target = edge_index
    x = one_hidden(conv.deep.pair, h, edge_index, e)
    for layer in conv.deep.hidden:
        x = x + softplus(x @ layer.weight.T + layer.bias)
    assert len(conv.deep.hidden) == message_depth - 2
    pair = torch.cat([h[target], h[source], e], dim=1) @ matrix.T + bias + x @ conv.deep.out.weight.T
    gate, core = normalised(pair, conv.pair_norm, train).chunk(2, dim=1)
    messages = torch.zeros_like(h).index_add(0, target, torch.sigmoid(gate) * softplus(core) * weight)
    torch.testing.assert_close(conv(h, Edges(edge_index, weight, e)), softplus(h + messages), rtol=1e-11, atol=1e-11)


def test_edge_updates_against_the_formula(graph):
    h, edge_index, e, weight = graph
    update = randomised(EdgeUpdate(F, K).double())
    expected = e + one_hidden(update.pair, h, edge_index, e) @ update.out.weight.T
    found = update(h, Edges(edge_index, weight, e))
    torch.testing.assert_close(found.features, expected, rtol=1e-12, atol=1e-12)
    assert found.index is edge_index
    assert found.weight is weight


@pytest.mark.parametrize("message_depth", [2, 3])
def test_deep_layers_keep_what_the_plain_one_keeps(message_depth, graph, rng):
    """Permuted atoms permute the features; weightless edges, updated or not, send nothing; gradients are right."""
    h, edge_index, e, weight = graph
    conv = randomised(GatedConv(F, K, message_depth=message_depth).double()).eval()
    update = randomised(EdgeUpdate(F, K).double())

    def both(h: Tensor, index: Tensor, weight: Tensor, e: Tensor) -> Tensor:
        edges = Edges(index, weight, e)
        h = conv(h, edges)
        return conv(h, update(h, edges))

    order = torch.from_numpy(rng.permutation(N))
    expected = both(h, edge_index, weight, e)
    permuted = both(h[order], torch.argsort(order)[edge_index], weight, e)
    torch.testing.assert_close(permuted, expected[order], rtol=1e-10, atol=1e-10)

    rest = torch.arange(E) % 3 != 0
    fading = both(h, edge_index, torch.where(rest[:, None], weight, 0.0), e)
    without = both(h, edge_index[:, rest], weight[rest], e[rest])
    torch.testing.assert_close(fading, without, rtol=1e-10, atol=1e-10)

    assert both(h, edge_index[:, :0], weight[:0], e[:0]).isfinite().all()
    inputs = (h.requires_grad_(), weight.requires_grad_(), e.requires_grad_())
    assert torch.autograd.gradcheck(lambda h, w, e: both(h, edge_index, w, e), inputs)


# BatchNorm


def test_batch_norm_is_torchs_for_two_rows_and_more(rng):
    ours, theirs = BatchNorm(F).double(), nn.BatchNorm1d(F).double()
    for rows in (2, 3, 50):
        x = torch.from_numpy(rng.normal(size=(rows, F)))
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=0, atol=0)


def test_batch_norm_takes_its_running_statistics_for_a_single_row(rng):
    norm = randomised(BatchNorm(F).double()).train()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = torch.from_numpy(rng.normal(size=(1, F))).requires_grad_()
    expected = (x - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias
    out = norm(x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    out.sum().backward()
    assert x.grad.abs().min() > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


def test_batch_norm_takes_no_rows():
    assert BatchNorm(F).train()(torch.zeros(0, F)).shape == (0, F)
