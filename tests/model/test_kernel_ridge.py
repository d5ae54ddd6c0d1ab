"""Kernel ridge regression as tensors: its formula, how it is stored, and that it is smooth."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from cgnn.model.kernel_ridge import KernelRidge


@pytest.fixture
def solved(rng):
    x = rng.normal(size=(40, 6)).astype(np.float32) * np.array([1, 5, 1e-3, 1, 0, 200], dtype=np.float32) + 3
    x[0, 1] = 400.0  # far beyond five standard deviations
    net = KernelRidge([4, 2])
    net.learn_scale(x, length=1.5)
    net.solve(rng.normal(size=40))
    return net, x


def test_its_formula(solved, rng):
    net, x = solved
    new = x[:7] + rng.normal(size=(7, 6)).astype(np.float32) * 0.3
    kept = [0, 1, 2, 3, 5]  # the other one is the same for all

    def scaled(features):
        mean, std = x[:, kept].astype(float).mean(axis=0), x[:, kept].astype(float).std(axis=0)
        return np.clip((features[:, kept].astype(float) - mean) / std, -5, 5) / np.array([4, 4, 4, 4, 2]) ** 0.25

    between = cdist(scaled(x), scaled(x))
    length = 1.5 * np.median(between[np.triu_indices(40, 1)])
    r = np.sqrt(3) * cdist(scaled(new), scaled(x)) / length
    expected = ((1 + r) * np.exp(-r)) @ net.weight.double().numpy()
    assert float(net.length) == pytest.approx(length, rel=1e-3)  # torch's median of an even number is the lower one
    net.length.fill_(length)
    np.testing.assert_allclose(net(torch.from_numpy(new))[:, 0], expected, rtol=2e-4, atol=2e-5)


def test_far_from_all_crystals_it_is_their_mean(solved):
    net, _ = solved
    far = net(torch.full((1, 6), -1e6))
    net.length.fill_(0.05)
    assert float(net(torch.full((1, 6), -1e6)).abs()) < 1e-10 < float(far.abs())


def test_crystals_do_not_depend_on_which_others_are_in_the_batch(solved):
    net, x = solved
    together = net(torch.from_numpy(x))
    alone = torch.cat([net(torch.from_numpy(x[i : i + 1])) for i in range(len(x))])
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-7)


def test_it_has_a_slope_also_at_the_crystals_themselves(solved):
    net, x = solved
    net = net.double()
    x = torch.from_numpy(x).double()[3:5].requires_grad_()
    assert torch.autograd.gradcheck(net, (x,), eps=1e-5, atol=1e-4)


def test_a_fresh_one_takes_what_another_one_was_solved_for(solved):
    net, x = solved
    fresh = KernelRidge([4, 2])
    assert fresh(torch.from_numpy(x)).abs().max() == 0
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(torch.from_numpy(x)), net(torch.from_numpy(x)))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("weight", torch.zeros(39)), ("known", torch.zeros(40, 5)), ("known", torch.zeros(40)), ("mean", torch.zeros(5))],
)
def test_a_damaged_one_is_refused(solved, name, tensor):
    state = {**solved[0].state_dict(), name: tensor}
    with pytest.raises(RuntimeError, match="size mismatch"):
        KernelRidge([4, 2]).load_state_dict(state)
    with torch.device("meta"):
        fresh = KernelRidge([4, 2])
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict(state, assign=True)
