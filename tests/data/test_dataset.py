import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from torch_geometric.data import Batch

from cgnn.config import DataConfig, GraphConfig
from cgnn.data.dataset import CrystalDataset, by_edges, collate
from cgnn.data.prepare import prepare
from cgnn.data.reading.gate import check_structure
from cgnn.data.records import Record
from cgnn.data.store import GraphStore, StoreWriter
from cgnn.errors import DataError
from cgnn.graph.build import GraphBuilder
from cgnn.targets import Target

TARGETS = [
    Target(name="bulk_modulus", column="k", unit="GPa", transform="log10"),
    Target(name="is_metal", task="binary"),
    Target(name="charge", level="atom"),
]
LONE = GraphConfig(neighbors="radius", cutoff=3.0)


FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
STRUCTURES = [
    Structure(Lattice.cubic(2.9), ["Fe"], [[0, 0, 0]]),
    Structure(Lattice.cubic(3.6), ["Cu"] * 4, FCC),
    Structure(Lattice.cubic(5.64), ["Na"] * 4 + ["Cl"] * 4, FCC + [[0.5 - x, y, z] for x, y, z in FCC]),
    Structure(Lattice.hexagonal(3.2, 5.2), ["Mg", "Mg"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    Structure(Lattice.cubic(9.0), ["Ar"], [[0, 0, 0]]),
]
"""Crystals of one to eight atoms; the last has no neighbours within 3 Å."""


@pytest.fixture(params=[GraphConfig(), LONE], ids=["nearest", "lone"])
def dataset(tmp_path, request):
    builder = GraphBuilder(request.param)
    with StoreWriter(tmp_path / "store", "key") as writer:
        for number, structure in enumerate(STRUCTURES):
            values = {
                "k": 10.0 * number + 1 if number != 2 else None,
                "is_metal": number % 2 == 0,
                "charge": [float(atom) for atom in range(len(structure))] if number % 2 else None,
            }
            if number == 3:
                values["k"] = "bad"
            writer.add(Record(f"c{number}", check_structure(structure), values), builder.arrays(structure))
    return CrystalDataset(GraphStore(tmp_path / "store"), TARGETS)


def test_labels_set_crystals_aside(dataset):
    assert dataset.ids == ["c0", "c1", "c2", "c4"]
    assert len(dataset) == 4
    assert [(aside.material_id, aside.code) for aside in dataset.set_aside] == [("c3", "bad_label")]


@pytest.mark.parametrize("indices", [[0], [3], [0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 0], [1, 3]])
def test_batch_equals_that_of_single_crystals(dataset, indices):
    singles = [dataset[index] for index in indices]
    expected = Batch.from_data_list(singles)
    found = dataset.batch(indices)
    assert set(found.keys()) == set(expected.keys()) - {"num_nodes"}
    for name in found.keys():  # noqa: SIM118 - not a mapping
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, equal_nan=True)
    assert found.num_graphs == expected.num_graphs == len(indices)
    assert found.num_nodes == expected.num_nodes


def test_batch_dtypes(dataset):
    batch = dataset.batch([0, 1])
    assert batch.z.dtype == batch.edge_index.dtype == batch.batch.dtype == torch.int64
    for name in ("pos", "lattice", "reach", "edge_shift", "y_bulk_modulus", "y_charge"):
        assert batch[name].dtype == torch.float64


def test_batch_does_not_share_memory_with_the_store(dataset):
    before = dataset.batch([0]).pos.clone()
    dataset.batch([0]).pos.add_(1.0)
    torch.testing.assert_close(dataset.batch([0]).pos, before, rtol=0, atol=0)


def test_labels_follow_the_crystals(dataset):
    batch = dataset.batch([3, 1, 2])
    np.testing.assert_array_equal(batch.y_bulk_modulus, [41.0, 11.0, np.nan])
    np.testing.assert_array_equal(batch.y_is_metal, [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(batch.y_charge, [np.nan, 0, 1, 2, 3, *[np.nan] * 8])
    for target in TARGETS:
        np.testing.assert_array_equal(dataset.label(target, np.array([3, 1, 2])), batch[target.field])
        np.testing.assert_array_equal(dataset.label(target), dataset.batch([0, 1, 2, 3])[target.field])


def test_stream_batch_equals_stored_batch(dataset):
    graphs = [dataset.store.graph(int(row)) for row in dataset.rows]
    found, expected = collate(graphs), dataset.batch(range(4))
    for name in found.keys():  # noqa: SIM118 - not a mapping
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_sizes_elements_summaries(dataset):
    atoms, edges = dataset.sizes()
    assert atoms.tolist() == [1, 4, 8, 1]
    assert edges.tolist() == [dataset[index].num_edges for index in range(4)]
    assert dataset.elements(np.array([0, 2])) == {26, 11, 17}
    summaries = dataset.summaries()
    assert [summary.material_id for summary in summaries] == dataset.ids
    assert summaries[2].composition == {"Na": 4, "Cl": 4}
    assert summaries[1].volume_per_atom == pytest.approx(3.6**3 / 4)


def test_indices(dataset):
    assert dataset.indices(["c4", "c0"]).tolist() == [3, 0]
    assert dataset.indices([]).tolist() == []
    with pytest.raises(DataError, match="2 ids of the split are not in the data, such as 'c3'"):
        dataset.indices(["c0", "c3", "x"])


@pytest.mark.parametrize("limit", [1, 30, 100, 10**9])
def test_by_edges_keeps_order_and_covers_all(dataset, limit, rng):
    for indices in (np.arange(4), np.array([3, 1, 0, 2, 2, 2]), rng.integers(4, size=50)):
        parts = by_edges(dataset, indices, limit)
        assert np.concatenate(parts).tolist() == indices.tolist()
        assert all(len(part) for part in parts)
        largest = dataset.sizes()[1].max()
        assert all(dataset.sizes()[1][part].sum() <= limit + largest for part in parts)


def test_pieces_of_real_crystals(export, tmp_path):
    target = Target(name="k", column="bulk_modulus.vrh", unit="GPa", transform="log10")
    dataset = CrystalDataset(prepare(DataConfig(path=str(export), cache=str(tmp_path)), GraphConfig()), [target])
    parts = by_edges(dataset, np.arange(len(dataset)), 300)
    assert len(parts) > 5
    whole = dataset.batch(np.arange(len(dataset)))
    cut = [dataset.batch(part) for part in parts]
    for name in ("z", "pos", "reach", "lattice", "edge_shift", "y_k"):
        assert torch.equal(torch.cat([batch[name] for batch in cut]), whole[name])


def test_unknown_column_is_told(dataset):
    with pytest.raises(DataError, match="target 'y': unknown column 'is_metl'; did you mean 'is_metal'"):
        CrystalDataset(dataset.store, [Target(name="y", column="is_metl")])


@pytest.mark.parametrize("indices", [[0], [3], [0, 1, 2, 3], [2, 2, 0]])
def test_a_batch_cut_on_a_device_is_the_same(dataset, indices):
    """The device's way, which takes the fields as tensors; "cpu" stands for a device here."""
    expected = dataset.batch(indices)
    dataset._on_device = dataset._on_disk(np.arange(len(dataset.store))).to(torch.device("cpu"))
    assert all(isinstance(field, torch.Tensor) for field in dataset._on_device.fields.values())
    found = dataset.batch(indices)
    assert found.num_graphs == expected.num_graphs
    assert set(found.keys()) == set(expected.keys())
    for name in expected.keys():  # noqa: SIM118 - iterating over a batch gives pairs
        assert torch.equal(torch.nan_to_num(found[name]), torch.nan_to_num(expected[name])), name
        assert found[name].dtype == expected[name].dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_a_gpu_lies_there(dataset):
    expected = dataset.batch([0, 2])
    dataset.to(torch.device("cuda"))
    found = dataset.batch([0, 2])
    assert found.pos.is_cuda
    assert torch.equal(found.edge_index.cpu(), expected.edge_index)


def bare_store(tmp_path):
    """Write crystals with a label, without one, with none of the columns, and with a bad one."""
    builder = GraphBuilder(GraphConfig())
    given = [{"k": 5.0}, {"k": None}, {}, {"k": "bad"}]
    with StoreWriter(tmp_path / "store", "key") as writer:
        for number, (values, structure) in enumerate(zip(given, STRUCTURES, strict=False)):
            writer.add(Record(f"c{number}", check_structure(structure), values), builder.arrays(structure))
    return GraphStore(tmp_path / "store")


def test_unlabelled_crystals_are_kept_where_asked(tmp_path):
    store = bare_store(tmp_path)
    usual = CrystalDataset(store, TARGETS[:1])
    assert usual.ids == ["c0"]
    dataset = CrystalDataset(store, TARGETS[:1], keep_unlabelled=True)
    assert dataset.ids == ["c0", "c1", "c2"]
    assert [(aside.material_id, aside.code) for aside in dataset.set_aside] == [("c3", "bad_label")]
    np.testing.assert_array_equal(dataset.label(TARGETS[0]), [5.0, np.nan, np.nan])
    assert dataset.batch([2, 0]).z.tolist() == [11] * 4 + [17] * 4 + [26]


def test_relabelled_and_hidden(dataset):
    other = dataset.relabelled({"bulk_modulus": np.array([1.0, 2.0, 3.0, np.nan])})
    np.testing.assert_array_equal(other.label(TARGETS[0]), [1.0, 2.0, 3.0, np.nan])
    np.testing.assert_array_equal(other.batch([1]).y_bulk_modulus, [2.0])
    np.testing.assert_array_equal(other.label(TARGETS[1]), dataset.label(TARGETS[1]))
    np.testing.assert_array_equal(dataset.label(TARGETS[0]), [1.0, 11.0, np.nan, 41.0])
    hidden = dataset.hidden(np.array([1]))
    np.testing.assert_array_equal(hidden.label(TARGETS[0]), [1.0, np.nan, np.nan, 41.0])
    np.testing.assert_array_equal(hidden.label(TARGETS[2], np.array([1])), [np.nan] * 4)
    charges = np.arange(14.0)
    np.testing.assert_array_equal(dataset.relabelled({"charge": charges}).label(TARGETS[2]), charges)
