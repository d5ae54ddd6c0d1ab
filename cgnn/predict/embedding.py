"""What a network makes of crystals before its heads: their features, and maps of these in two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgnn.data.dataset import EDGES_PER_BATCH
from cgnn.data.items import Block, Finished, SetAside
from cgnn.data.packed import join
from cgnn.data.records import blocks, from_structures
from cgnn.errors import DataError, MissingPackageError, choose
from cgnn.model.heads import crystal_width
from cgnn.predict.forward import Building, Graphs, Network
from cgnn.predict.predictions import joined_columns
from cgnn.predict.predictor import Predictor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Embedding:
    """Features of several crystals, in their order.

    Args:
        ids: Their ids (n,).
        features: What the heads of the model's first network see (n, F).
        columns: Predictions by column name (n,), such as a map is coloured by.
        set_aside: Crystals that can't be used, and why.
    """

    ids: list[str]
    features: Array
    columns: dict[str, Any]
    set_aside: list[SetAside]


def embed(predictor: Predictor, crystals: Any, counter: Callable[[int], object] | None = None) -> Embedding:
    """Return the features of crystals, and what is predicted of them.

    Args:
        predictor: The model.
        crystals: pymatgen ``Structure`` or ASE ``Atoms``, one or many (list, Series), the path of a file or folder, or
            an iterator over its blocks (`cgnn.data.records.blocks`).
        counter: Is told how many more crystals are done.

    Raises:
        DataError: No crystal can be used.
    """
    building = Building(predictor.info.config.graph)
    network = Network(predictor.members, predictor.info.elements, predictor.confidence, predictor.device)
    found = Embedding([], np.zeros((0, crystal_width(predictor.members[0].config))), {}, [])
    features: list[Array] = []
    columns: list[dict[str, Any]] = []
    for block in _blocks(crystals):
        for graphs in building.parts(block, EDGES_PER_BATCH):
            found.set_aside.extend(row.aside for row in graphs.rows if row.aside is not None)
            found.ids.extend(row.material_id for row in graphs.rows if row.aside is None)
            if graphs.fields:
                features.append(_features(predictor, graphs))
                columns.append(network.predict(graphs).columns)
            if counter:
                counter(len(graphs.rows))
    if not features:
        raise DataError("no crystal can be used")
    return Embedding(found.ids, np.concatenate(features), joined_columns(columns), found.set_aside)


def _blocks(crystals: Any) -> Iterable[Block]:
    if isinstance(crystals, str | Path):
        return blocks(crystals)
    if isinstance(crystals, Iterator):
        return crystals
    return [Finished(list(from_structures(crystals)))]


@torch.no_grad()
def _features(predictor: Predictor, graphs: Graphs) -> Array:
    (fields,) = graphs.packed().fields
    tensors = {name: torch.from_numpy(values).to(predictor.device) for name, values in fields.items()}
    batch = join(tensors, np.array(graphs.atoms), np.array(graphs.edges))
    features = predictor.members[0].features(batch)[1]
    return np.asarray(features.double().cpu().numpy())


@dataclass(frozen=True)
class Map:
    """Crystals as points of a plane.

    Args:
        points: Their places (n, 2).
        axes: What the two axes are.
    """

    points: Array
    axes: tuple[str, str]


def _pca(features: Array) -> Map:
    """Project on the two directions of largest variance; the axes tell their shares of it."""
    from sklearn.decomposition import PCA

    found = PCA(2, svd_solver="full").fit(features)
    first, second = found.explained_variance_ratio_.tolist()
    return Map(found.transform(features), (f"first component ({first:.0%})", f"second component ({second:.0%})"))


def _umap(features: Array) -> Map:
    """Keep neighbours together (McInnes, Healy and Melville, arXiv:1802.03426); distances between groups say little."""
    try:
        from umap import UMAP
    except ImportError:
        raise MissingPackageError("maps by umap need umap-learn: pip install umap-learn") from None
    return Map(np.asarray(UMAP(random_state=0).fit_transform(features), dtype=np.float64), ("UMAP 1", "UMAP 2"))


MAPS: dict[str, Callable[[Array], Map]] = {"pca": _pca, "umap": _umap}
"""Features (n, F) -> their map."""


def mapped(features: Array, way: str = "pca") -> Map:
    """Return features (n, F) as points of a plane.

    Raises:
        ConfigError: No such way.
        DataError: There are fewer than three crystals, or all are the same to the network.
        MissingPackageError: ``umap`` is not installed.
    """
    project = choose(MAPS, way, "map")
    if len(features) < 3 or not np.ptp(features, axis=0).any():
        raise DataError(f"a map needs at least three different crystals, got {len(features)}")
    return project(features)
