"""Parts of a prediction that belong to atoms and bonds: they are complete, symmetric and what the formula says."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from torch_geometric.data import Batch

from cgnn.config import ModelConfig
from cgnn.errors import ConfigError
from cgnn.graph import GraphBuilder
from cgnn.model import CrystalGNN
from cgnn.model.attribution import WAYS, attribute
from cgnn.targets import Target

TARGETS = (
    Target(name="modulus", transform="log10", unit="GPa"),
    Target(name="magnetic", task="binary"),
    Target(name="kind", task="multiclass", classes=("metal", "salt", "other")),
    Target(name="charge", level="atom"),
)
SALT = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
KNOWN = (11, 13, 17, 29)


def network(seed=20261121, **settings):
    """A random network whose running statistics come from a crystal."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CrystalGNN(ModelConfig(**{"width": 10, "depth": 3, "head_width": 8} | settings), TARGETS)
        model.head("modulus").fit_scaling(np.array([10.0, 100.0, 300.0]))
    with torch.no_grad():
        for _ in range(5):
            model.train()(Batch.from_data_list([GraphBuilder()(SALT), GraphBuilder()(bulk("Cu"))]))
    return model.eval()


def learned(model, graph, name="modulus"):
    """The value of a crystal, in double precision, on the learned scale."""
    import copy

    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        raw = twin(Batch.from_data_list([graph]))[name]
    return float(twin.head(name).learned(raw)[0].mean())


@pytest.fixture(scope="module")
def salt():
    return GraphBuilder()(SALT)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "silu", "elements": ("properties",), "descriptors": ("volume",), "spread": True},
        {"edge_updates": True, "message_depth": 2},
        {"remedy": "jumping"},
        {"remedy": "initial_residual", "depth": 6, "residual": False},
        {"pooling": "attention", "norm": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_integrated_parts_sum_up_to_what_the_path_changes(target, settings, salt):
    for found in attribute([network(**settings)], salt, KNOWN, target):
        assert found.value != found.reference
        assert abs(found.gap) < 1e-5 * abs(found.value - found.reference)
        assert found.parts.sum() == pytest.approx(found.value - found.reference, rel=1e-5)


def test_values_are_those_of_the_network_and_the_references_what_they_are_said_to_be(salt):
    model = network()
    atoms, bonds = attribute([model], salt, KNOWN, "modulus", "gradient")
    assert atoms.value == pytest.approx(learned(model, salt), abs=1e-12)
    assert bonds.value == pytest.approx(learned(model, salt), abs=1e-12)
    alone = salt.clone()
    alone.edge_index, alone.edge_shift = salt.edge_index[:, :0], salt.edge_shift[:0]
    assert bonds.reference == pytest.approx(learned(model, alone), abs=1e-12)
    same = attribute([model], GraphBuilder()(bulk("Cu")), [29], "modulus")[0]
    assert same.parts == pytest.approx([0.0], abs=1e-15)  # an atom of the only element is the average one
    assert atoms.reference != atoms.value


def test_a_gradient_is_the_difference_that_a_little_less_of_a_bond_makes(salt):
    model = network().double()
    found = attribute([model], salt, KNOWN, "modulus", "gradient")[1]
    edge, step = 7, 1e-5
    values = []
    for factor in (1 - step, 1 + step):

        def scaled(module, inputs, factor=factor):
            h, edges, *others = inputs
            edges.weight = edges.weight.clone()
            edges.weight[edge] *= factor if not hasattr(edges, "is_scaled") else 1.0
            edges.is_scaled = True  # the convolutions share their edges
            return (h, edges, *others)

        handle = model.convs[0].register_forward_pre_hook(scaled)
        values.append(learned(model, salt))
        handle.remove()
    assert found.parts[edge] == pytest.approx((values[1] - values[0]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_equivalent_atoms_and_bonds_have_equal_parts(way, salt):
    model = network()
    atoms, bonds = attribute([model], salt, KNOWN, "modulus", way)
    for element in (11, 17):
        mine = atoms.parts[salt.z.numpy() == element]
        assert np.ptp(mine) < 1e-10 * np.abs(atoms.parts).max()
    assert len(np.unique(atoms.parts.round(12))) == 2
    ends = salt.z[salt.edge_index].numpy()
    lengths = salt.edge_vectors().norm(dim=1).numpy().round(6)
    kinds = np.column_stack([ends.T, lengths])
    for kind in np.unique(kinds, axis=0):
        assert np.ptp(bonds.parts[(kinds == kind).all(axis=1)]) < 1e-10 * np.abs(bonds.parts).max()

    double = attribute([model], GraphBuilder()(SALT.repeat((1, 1, 2))), KNOWN, "modulus", way)
    assert double[0].parts == pytest.approx(np.tile(atoms.parts, 2) / 2, abs=1e-10)
    assert double[1].value == pytest.approx(bonds.value, abs=1e-10)


def test_several_networks_are_asked_for_their_mean(salt):
    models = [network(), network(seed=5)]
    apart = [attribute([model], salt, KNOWN, "modulus") for model in models]
    for which, found in enumerate(attribute(models, salt, KNOWN, "modulus")):
        assert found.parts == pytest.approx((apart[0][which].parts + apart[1][which].parts) / 2, abs=1e-12)
        assert abs(found.gap) < 1e-5 * abs(found.value - found.reference)


def test_a_large_crystal_goes_through_in_parts(salt, monkeypatch):
    whole = attribute([network()], salt, KNOWN, "modulus")
    monkeypatch.setattr("cgnn.model.attribution.EDGES_AT_ONCE", 5 * salt.num_edges)
    for found, wanted in zip(attribute([network()], salt, KNOWN, "modulus"), whole, strict=True):
        assert found.parts == pytest.approx(wanted.parts, abs=1e-12)


def test_without_convolutions_bonds_have_no_part(salt):
    atoms, bonds = attribute([network(depth=0)], salt, KNOWN, "modulus")
    assert not bonds.parts.any()
    assert bonds.value == bonds.reference
    assert abs(atoms.gap) < 1e-5 * abs(atoms.value - atoms.reference)


def test_the_network_stays_as_it_was(salt):
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attribute([model], salt, KNOWN, "modulus")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not model.embed._forward_hooks
    with pytest.raises(ConfigError, match="unknown way of attribution 'integral'; did you mean 'integrated'"):
        attribute([model], salt, KNOWN, "modulus", "integral")
