"""Neighbours across Voronoi faces: known polyhedra, rays, empty space."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import crystal

from cgnn.config import GraphConfig
from cgnn.errors import CrystalError
from cgnn.graph import GraphBuilder
from cgnn.graph.voronoi import _cell, _solid_angle, voronoi


def find(atoms, **settings):
    return voronoi(atoms.positions, np.array(atoms.cell), GraphConfig(neighbors="voronoi", **settings))


# The cells: rhombic dodecahedron, truncated octahedron, cube, triakis truncated tetrahedron.
POLYHEDRA = [("Cu", "fcc", 12), ("Fe", "bcc", 8 + 6), ("Po", "sc", 6), ("Si", "diamond", 4 + 12)]


@pytest.mark.parametrize(("element", "structure", "faces"), POLYHEDRA)
def test_faces_of_known_cells(element, structure, faces):
    atoms = bulk(element, structure, a=4.0)
    for cell in (atoms, atoms.repeat((2, 1, 2))):
        found = find(cell, tolerance=0.002)
        assert np.bincount(found.target).tolist() == [faces] * len(cell)
        assert np.isinf(found.reach).all()


def test_small_faces_are_left_out():
    silicon = bulk("Si")  # the twelve small faces fill about 1 % of the view each
    assert len(find(silicon, tolerance=0.05).source) == 2 * 4


def test_the_faces_fill_the_view():
    for atoms in (bulk("Cu"), bulk("Ti"), bulk("NaCl", "rocksalt", a=5.64)):
        near = GraphBuilder(GraphConfig(neighbors="radius", cutoff=8.0))(atoms)
        angles, farthest = _cell(near.edge_vectors().numpy()[near.edge_index[1] == 0], 10.0)
        assert angles.sum() == pytest.approx(4 * np.pi, rel=1e-9)
        assert 0 < farthest < 4


def test_the_solid_angle_of_a_face_of_a_cube():
    square = np.array([[1.0, -1, -1], [1, 1, -1], [1, 1, 1], [1, -1, 1]])
    assert _solid_angle(square) == pytest.approx(4 * np.pi / 6, rel=1e-14)


def test_the_faces_are_those_that_rays_hit_first(embedded_documents, rng):
    # Not pymatgen's VoronoiNN: its get_all_nn_info loses faces of emt-PdAu-fcc011-AABB, where rays agree with us.
    rays = rng.normal(size=(20_000, 3))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    for atoms in map(crystal, embedded_documents[::50]):
        near = GraphBuilder(GraphConfig(neighbors="radius", cutoff=6.0))(atoms)
        vectors = near.edge_vectors().numpy()[near.edge_index[1] == 0]
        # A ray t u meets the plane halfway to v at t = |v|^2 / (2 u v).
        inverse = 2 * rays @ vectors.T / np.sum(vectors**2, axis=1)
        shares = np.bincount(inverse.argmax(axis=1), minlength=len(vectors)) / len(rays)
        angles, _ = _cell(vectors, 10.0)
        np.testing.assert_allclose(angles / (4 * np.pi), shares, rtol=0, atol=0.012)  # 5 standard deviations
        found = find(atoms)
        assert np.sum(found.target == 0) == np.sum(angles / (4 * np.pi) > 0.01)


def test_a_dimer_in_empty_space():
    for box in (12.0, 40.0):
        dimer = Atoms("CO", positions=[[0, 0, 0], [1.13, 0, 0]], cell=np.eye(3) * box, pbc=True)
        found = find(dimer)
        assert found.source.tolist() == [1, 0]
        assert not found.shift.any()


def test_atoms_on_one_spot_are_refused():
    twins = Atoms("H2", positions=np.ones((2, 3)), cell=np.eye(3) * 4, pbc=True)
    with pytest.raises(CrystalError, match=r"0\.000 Å apart"):
        GraphBuilder(GraphConfig(neighbors="voronoi"))(twins)
