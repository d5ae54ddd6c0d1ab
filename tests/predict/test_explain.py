"""Explanations of a stored model: bonds each once, units, and the picture."""

import numpy as np
import pytest
from ase.build import bulk

from cgnn.data.records import read
from cgnn.errors import ConfigError, CrystalError
from cgnn.plots.attribution import MOST_BONDS, explanation_picture
from cgnn.predict import Predictor
from cgnn.predict.explain import explain


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.load(trained, "cpu")


@pytest.fixture(scope="module")
def record(export):
    return next(record for record in read(export) if record.material_id == "emt-Cu3Ag-L1_2")


def test_values_are_the_predictions_and_parts_sum_up(predictor, record):
    predicted = predictor.predict_structure(record.structure)
    found = explain(predictor, record.crystal)
    assert [each.target.name for each in found] == ["bulk_modulus", "shear_modulus"]
    for each in found:
        assert each.unit == "log10(GPa)"
        assert each.atoms.value == pytest.approx(np.log10(predicted[each.target.name]), abs=2e-5)
        for part in (each.atoms, each.edges):
            assert abs(part.gap) < 1e-4 * abs(part.value - part.reference)


def test_bonds_hold_each_pair_once_with_both_directions(predictor, record):
    (found,) = explain(predictor, record.crystal, "bulk_modulus")
    bonds, graph = found.bonds(), found.graph
    assert bonds.parts.sum() == pytest.approx(found.edges.parts.sum(), abs=1e-12)
    assert (np.diff(np.abs(bonds.parts)) <= 0).all()
    ends = np.column_stack([bonds.starts, bonds.starts + bonds.vectors]).round(6)
    assert len(np.unique(ends, axis=0)) == len(bonds.parts) == graph.num_edges / 2
    lengths = np.linalg.norm(bonds.vectors, axis=1)
    wanted = graph.edge_vectors().norm(dim=1).numpy()
    assert np.sort(np.repeat(lengths, 2)) == pytest.approx(np.sort(wanted), rel=1e-9)
    # of the twelve bonds of a kind in L1_2 each has an equal part, whichever atom it is seen from
    symbols = np.array([site.specie.symbol for site in record.structure])
    shortest = lengths < lengths.min() + 1e-3
    kinds = np.array(["".join(sorted(symbols[pair])) for pair in bonds.atoms])
    for kind in ("AgCu", "CuCu"):
        mine = bonds.parts[shortest & (kinds == kind)]
        assert len(mine) == 12
        assert np.ptp(mine) < 1e-9
    assert np.ptp(found.atoms.parts[symbols == "Cu"]) < 1e-10


def test_what_can_not_be_explained_is_said(predictor, record):
    with pytest.raises(ConfigError, match="unknown target 'bulk'; did you mean 'bulk_modulus'"):
        explain(predictor, record.crystal, "bulk")
    with pytest.raises(CrystalError, match="is not a crystal"):
        explain(predictor, bulk("Cu", a=0.5))


def test_the_picture_shows_atoms_and_bonds_by_their_parts(predictor, record):
    (found,) = explain(predictor, record.crystal, "bulk_modulus")
    figure = explanation_picture(record.structure, found)
    left, right, *scales = figure.axes
    assert [scale.get_ylabel() for scale in scales] == [
        "parts of the atoms (log10(GPa))",
        "parts of the bonds (log10(GPa))",
    ]
    low, high = scales[0].get_ylim()
    assert high == -low == pytest.approx(np.abs(found.atoms.parts).max(), rel=1e-6)
    assert {text.get_text() for text in left.texts} >= {"Cu", "Ag"}
    assert "bulk modulus" in figure.get_suptitle()
    assert len(found.bonds().parts) > 0
    assert MOST_BONDS >= 30
    assert right.collections
