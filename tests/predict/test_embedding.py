"""Features of crystals and their maps."""

import builtins

import numpy as np
import pytest
import torch

from cgnn.data.records import blocks, read
from cgnn.errors import ConfigError, DataError, MissingPackageError
from cgnn.plots.embedding import embedding_map
from cgnn.predict import Predictor
from cgnn.predict.embedding import Map, embed, mapped


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.load(trained, "cpu")


@pytest.fixture(scope="module")
def found(predictor, export):
    return embed(predictor, export)


def test_features_are_what_the_heads_see(predictor, export, found):
    assert found.ids == [record.material_id for record in read(export)]
    assert found.features.shape == (40, 8)
    model = predictor.members[0]
    with torch.no_grad():
        raw = {"bulk_modulus": model.head("bulk_modulus")(torch.from_numpy(found.features).float())}
        decoded = model.head("bulk_modulus").decode(raw["bulk_modulus"]).numpy()
    assert decoded == pytest.approx(predictor.predict(export)["bulk_modulus"], rel=1e-4)
    assert found.columns["bulk_modulus"] == pytest.approx(predictor.predict(export)["bulk_modulus"], rel=1e-6)


def test_files_blocks_and_structures_give_the_same(predictor, export, found):
    structures = [record.structure for record in read(export)][:3]
    assert embed(predictor, structures).features == pytest.approx(found.features[:3], rel=1e-4, abs=1e-5)
    assert embed(predictor, structures[0]).features == pytest.approx(found.features[:1], rel=1e-4, abs=1e-5)
    assert np.array_equal(embed(predictor, blocks(export)).features, found.features)
    counts = []
    embed(predictor, export, counts.append)
    assert sum(counts) == 40


def test_what_can_not_be_used_is_set_aside(predictor, found):
    from ase.build import bulk

    result = embed(predictor, [bulk("Cu", a=0.5), bulk("Cu")])
    assert result.ids == ["crystal-1"]
    assert [aside.material_id for aside in result.set_aside] == ["crystal-0"]
    with pytest.raises(DataError, match="no crystal can be used"):
        embed(predictor, [bulk("Cu", a=0.5)])


def test_pca_finds_the_plane_in_which_points_lie(rng):
    plane = rng.normal(size=(50, 2)) * [3.0, 1.0]
    axes = np.linalg.qr(rng.normal(size=(7, 2)))[0]
    found = mapped(plane @ axes.T + rng.normal(size=7))
    between = lambda points: np.linalg.norm(points[:, None] - points[None], axis=2)  # noqa: E731
    assert between(found.points) == pytest.approx(between(plane), abs=1e-9)
    shares = [float(axis.split("(")[1].rstrip("%)")) for axis in found.axes]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_what_can_not_be_mapped_is_said(found, monkeypatch):
    with pytest.raises(DataError, match="at least three different crystals"):
        mapped(found.features[:2])
    with pytest.raises(ConfigError, match="unknown map 'pcs'; did you mean 'pca'"):
        mapped(found.features, "pcs")
    plain = builtins.__import__

    def without(name, *others):
        if name.startswith("umap"):
            raise ImportError
        return plain(name, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match="pip install umap-learn"):
        mapped(found.features, "umap")


def test_pictures_by_number_and_by_class(rng):
    place = Map(rng.normal(size=(6, 2)), ("first", "second"))
    figure = embedding_map(place, [1.0, 10.0, 100.0, np.nan, -1.0, 5.0], "bulk_modulus", "GPa", is_log=True)
    axes, scale = figure.axes
    assert [len(points.get_offsets()) for points in axes.collections] == [2, 4]
    assert scale.get_ylabel() == "bulk modulus (GPa)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("first", "second")
    figure = embedding_map(place, ["metal", "salt", "metal", "salt", "salt", "salt"], "kind")
    assert [len(points.get_offsets()) for points in figure.axes[0].collections] == [2, 4]
