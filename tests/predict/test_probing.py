"""A probe tells what is smooth from what jumps, and by how much."""

import numpy as np
import pytest
from crystals import crystal

from cgnn.config import GraphConfig
from cgnn.data.records import read
from cgnn.errors import ConfigError
from cgnn.graph.build import crystal_arrays
from cgnn.graph.crystal import Crystal
from cgnn.predict import Predictor
from cgnn.predict.probing import PERTURBATIONS, Values, probe, same_weights, verdicts
from cgnn.predict.probing.paths import shaken, split_shell
from cgnn.predict.probing.probe import AMPLITUDES, PLACES, roughness
from cgnn.predict.probing.verdict import errors_of

EIGHT = GraphConfig(k=8)
"""The eighth neighbour cuts the first shell of close-packed crystals."""


@pytest.fixture(scope="module")
def crystals(embedded_documents):
    fitting = [document for document in embedded_documents if 2 <= document["nsites"] <= 4]
    return [Crystal(*crystal_arrays(crystal(document))) for document in fitting[::40][:4]]


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.load(trained, "cpu")


@pytest.fixture(scope="module")
def records(export):
    layered = [record for record in read(export) if record.material_id.endswith("AABB")]
    return layered[2:5]  # alloys in layers: which of equally distant neighbours are kept makes a difference


def lengths(crystal):
    """Lengths of the bonds of a crystal's graph, Å."""
    from cgnn.graph import GraphBuilder

    return GraphBuilder(EIGHT)(crystal).edge_vectors().norm(dim=1).numpy()


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_paths_begin_at_the_crystal_and_grow_with_the_amplitude(name, crystals):
    for original in crystals:
        path = PERTURBATIONS[name](original, EIGHT, np.random.default_rng(1))
        assert np.array_equal(path(0.0).pos, original.pos)
        assert np.array_equal(path(0.0).lattice, original.lattice)
        small, large = path(1e-3), path(2e-3)
        for field in ("pos", "lattice"):
            steps = [getattr(changed, field) - getattr(original, field) for changed in (small, large)]
            assert steps[1] == pytest.approx(2 * steps[0], rel=1e-6, abs=1e-12)
        # a bond changes by about the amplitude at most: a strain acts on long ones a little more
        assert 1e-5 < np.abs(lengths(small) - lengths(original)).max() < 4e-3
        again = PERTURBATIONS[name](original, EIGHT, np.random.default_rng(1))
        assert np.array_equal(again(0.05).pos, path(0.05).pos)


def test_shaking_has_the_amplitude_as_its_root_mean_square(crystals):
    steps = shaken(crystals[0], EIGHT, np.random.default_rng(2))(0.01).pos - crystals[0].pos
    assert np.sqrt((steps**2).sum(1).mean()) == pytest.approx(0.01, rel=1e-9)


def test_splitting_a_shell_lengthens_one_bond_by_the_amplitude(crystals):
    for original in crystals:
        changed = split_shell(original, EIGHT, np.random.default_rng(3))(1e-4)
        change = np.abs(lengths(changed) - lengths(original)).max()
        assert change == pytest.approx(1e-4, rel=1e-3)


class Step:
    """Values with a known slope and, beyond a place, a known jump, in place of a model's."""

    def __init__(self, place, jump):
        self.place, self.jump = place, jump

    def __call__(self, crystals):
        x = np.array([crystal.pos[0, 0] for crystal in crystals])
        return {"y": (0.3 * x + self.jump * (x > self.place))[:, None]}


def along_x(amplitude):
    return Crystal(np.array([1]), np.array([[amplitude, 0.0, 0.0]]), np.eye(3))


@pytest.mark.parametrize("jump", [1e-3, -0.5])
def test_a_jump_is_found_where_it_is_and_measured(jump):
    found = roughness(Step(0.04321, jump), along_x, PLACES)["y"]
    assert found.jump == pytest.approx(abs(jump), rel=1e-6)
    assert found.at == pytest.approx(0.04321, abs=1e-9)
    assert found.share > 0.6
    assert found.over_median == pytest.approx((abs(0.3e-3 + jump)) / 0.3e-3, rel=1e-6)


def test_a_slope_is_no_jump():
    found = roughness(Step(1.0, 5.0), along_x, PLACES)["y"]
    assert found.share < 1e-6
    assert found.over_median == pytest.approx(1.0, rel=1e-6)


def test_values_are_those_of_the_predictor(predictor, records):
    values = Values(predictor.members, predictor.info.config.graph)
    for record in records:
        found = values([record.crystal])
        predicted = predictor.predict_structure(record.structure)
        for target in values.targets:
            assert found[target.name][0, 0] == pytest.approx(np.log10(predicted[target.name]), abs=2e-5)
    assert next(predictor.members[0].parameters()).dtype.itemsize == 4  # the model itself stays as it was


def test_smooth_and_jumping_neighbours_are_told_apart(predictor, crystals, records):
    settings = predictor.info.config.graph.model_copy(update={"k": 8})
    subjects = {
        name: Values(predictor.members, each) for name, each in same_weights(settings, ["cgcnn"], crystals).items()
    }
    assert list(subjects) == ["nearest", "cgcnn"]
    found = probe(subjects, records)
    assert len(found.responses) == 2 * 2 * len(PERTURBATIONS) * len(records)
    assert not found.failed
    smooth, jumping = ([each for each in found.responses if each.neighbors == name] for name in subjects)
    assert not any(each.is_jump for each in smooth)
    assert any(each.is_jump for each in jumping if each.perturbation == "split_shell")
    for each in smooth:  # ten times less for a change ten times smaller, down to the smallest
        assert each.changes[0] < 1e-3 * max(each.changes[3], 1e-6)
    errors = {name: errors_of(values, records) for name, values in subjects.items()}
    said = {(each.target, each.neighbors): each for each in verdicts(found.responses, errors)}
    bulk = said["bulk_modulus", "nearest"]
    assert bulk.text().startswith(f"bulk modulus, nearest: smooth, no jump on {bulk.paths} paths; 1e-06 Å changes it")
    assert bulk.error == pytest.approx(errors["nearest"]["bulk_modulus"], rel=1e-12)
    other = said["bulk_modulus", "cgcnn"]
    assert f"jumps on {other.jumps} of {other.paths} paths, the largest by " in other.text()
    assert other.largest.roughness.jump == max(
        each.roughness.jump for each in jumping if each.is_jump and each.target == "bulk_modulus"
    )


def test_errors_are_those_of_the_evaluation(predictor, records, export):
    from cgnn.data.records import blocks

    wanted = predictor.evaluate(blocks(export)).metrics["bulk_modulus"]["mae_log10"]
    found = errors_of(Values(predictor.members, predictor.info.config.graph), read(export))
    assert found["bulk_modulus"] == pytest.approx(wanted, abs=2e-5)


def test_the_radius_is_as_large_as_the_reach_of_the_atoms(crystals):
    settings = GraphConfig()
    found = same_weights(settings, ["radius", "nearest"], crystals)
    assert list(found) == ["nearest", "radius"]
    assert 2.5 < found["radius"].cutoff < 6.0
    assert found["radius"].neighbors == "radius"


def test_what_can_not_be_probed_is_set_aside(predictor, records):
    from dataclasses import replace

    overlapping = replace(
        records[0],
        material_id="overlap",
        crystal=Crystal(np.array([1, 1]), np.array([[0, 0, 0], [0.1, 0, 0]]), 4 * np.eye(3)),
    )
    values = {"nearest": Values(predictor.members, predictor.info.config.graph)}
    found = probe(values, [overlapping, records[0]], ["moved"])
    assert list(found.failed) == ["overlap"]
    assert "nearer than" in found.failed["overlap"]
    assert {each.material_id for each in found.responses} == {records[0].material_id}
    assert all(len(each.changes) == len(AMPLITUDES) for each in found.responses)
    with pytest.raises(ConfigError, match="unknown perturbation 'move'; did you mean 'moved'"):
        probe(values, records, ["move"])
