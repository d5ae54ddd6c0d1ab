"""Every entry of `POOLINGS` meets one contract, and each its formula."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cgnn.model.network import POOLINGS

F = 5


@pytest.fixture
def atoms(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Features of 3, 1, 4 and 2 atoms, and the crystal of each."""
    return torch.from_numpy(rng.normal(size=(10, F))), torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3, 3])


@pytest.fixture(params=POOLINGS)
def pool(request: pytest.FixtureRequest) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return POOLINGS[request.param](F).double()


def test_the_order_of_the_atoms_does_not_matter(pool, atoms, rng):
    h, batch = atoms
    order = torch.from_numpy(rng.permutation(len(h)))
    torch.testing.assert_close(pool(h[order], batch[order], 4), pool(h, batch, 4), rtol=1e-12, atol=1e-12)


def test_crystals_do_not_see_each_other(pool, atoms):
    h, batch = atoms
    together = pool(h, batch, 4)
    for crystal in range(4):
        alone = h[batch == crystal]
        expected = pool(alone, torch.zeros(len(alone), dtype=torch.int64), 1)
        torch.testing.assert_close(together[crystal : crystal + 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("empty", [0, 2, 4])
def test_an_empty_crystal_does_not_vanish(pool, atoms, empty):
    h, batch = atoms
    pooled = pool(h, batch + (batch >= empty), 5)
    assert pooled.shape == (5, F)
    assert torch.isfinite(pooled).all()
    torch.testing.assert_close(pooled[torch.arange(5) != empty], pool(h, batch, 4), rtol=1e-12, atol=1e-12)


def test_one_atom_is_its_own_mean(pool, atoms):
    h, _ = atoms
    torch.testing.assert_close(pool(h[:1], torch.zeros(1, dtype=torch.int64), 1), h[:1], rtol=1e-12, atol=1e-12)


def test_gradients(pool, atoms):
    h, batch = atoms
    assert torch.autograd.gradcheck(lambda h: pool(h, batch, 4), h.clone().requires_grad_())


@pytest.mark.parametrize("name", ["mean", "max", "attention"])
def test_twice_the_cell_pools_to_the_same(name, atoms):
    h, batch = atoms
    pool = POOLINGS[name](F).double()
    torch.testing.assert_close(
        pool(torch.cat([h, h]), torch.cat([batch, batch]), 4), pool(h, batch, 4), rtol=1e-12, atol=1e-12
    )


FORMULAS = {"mean": lambda h: h.mean(0), "sum": lambda h: h.sum(0), "max": lambda h: h.max(0).values}


@pytest.mark.parametrize("name", FORMULAS)
def test_reductions_against_their_formula(name, atoms):
    h, batch = atoms
    expected = torch.stack([FORMULAS[name](h[batch == crystal]) for crystal in range(4)])
    torch.testing.assert_close(POOLINGS[name](F)(h, batch, 4), expected, rtol=1e-12, atol=1e-12)


def test_attention_against_its_formula(atoms):
    h, batch = atoms
    pool = POOLINGS["attention"](F).double()
    (weight, bias) = pool.parameters()
    expected = []
    for crystal in range(4):
        mine = h[batch == crystal]
        score = torch.exp(mine @ weight[0] + bias)
        expected.append((score[:, None] * mine).sum(0) / score.sum())
    torch.testing.assert_close(pool(h, batch, 4), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_the_contract_covers_the_table():
    assert set(POOLINGS) == {*FORMULAS, "attention"}
