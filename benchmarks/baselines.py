"""The same work by the public libraries as their users do it: the original CGCNN's reading, PyG's network and loader.

The reading follows ``cgcnn/data.py`` of https://github.com/txie-93/cgcnn (Xie and Grossman, PRL 120, 145301, 2018):
pymatgen parses the CIF, ``get_all_neighbors`` finds all within 8 Å, they are sorted by distance and cut to twelve,
and numpy expands the distances in Gaussians. The network is PyG's own ``CGConv`` under its ``DataLoader``.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Structure
from pymatgen.io.cif import CifParser
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import CGConv, global_mean_pool

from cgnn.config import GraphConfig

RADIUS = 8.0
NEIGHBORS = 12
TWELVE = GraphConfig(neighbors="cgcnn", k=NEIGHBORS, cutoff=RADIUS)
"""Our settings for the very same edges."""
CENTERS = np.arange(0, RADIUS + 0.2, 0.2)
"""Å; the original's 41 Gaussians, as wide as they stand apart."""


def parse_cif(text: str) -> Structure:
    """Return the crystal of a CIF text by pymatgen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CifParser.from_str(text).parse_structures(primitive=False)[0]


def crystal_graph(crystal: Structure) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return edges of the twelve nearest (2, E), atomic numbers (N,) and distances (E,), the original's way."""
    source, target, distance = [], [], []
    for atom, found in enumerate(crystal.get_all_neighbors(RADIUS, include_index=True)):
        nearest = sorted(found, key=lambda neighbor: neighbor.nn_distance)[:NEIGHBORS]
        source += [neighbor.index for neighbor in nearest]
        target += [atom] * len(nearest)
        distance += [neighbor.nn_distance for neighbor in nearest]
    z = np.array([site.specie.number for site in crystal])
    return np.array([source, target]), z, np.array(distance)


def gaussians(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Gaussian expansion of distances (E, 41), as the original computes it."""
    return np.exp(-((distance[:, None] - CENTERS) ** 2) / 0.2**2)


def to_data(
    edges: NDArray[np.int64], z: NDArray[np.int64], distance: NDArray[np.float64], y: float = 0.0, expand: bool = True
) -> Data:
    """Return one crystal for PyG; attributes of the edges are their Gaussians, or their distances (Å)."""
    attributes = gaussians(distance) if expand else distance[:, None]
    return Data(
        z=torch.as_tensor(z, dtype=torch.long),
        num_nodes=len(z),
        edge_index=torch.as_tensor(edges, dtype=torch.long),
        edge_attr=torch.as_tensor(attributes, dtype=torch.float32),
        y=torch.tensor([y], dtype=torch.float32),
    )


class CGConvNet(nn.Module):
    """Element vectors, PyG's ``CGConv`` layers, mean over the atoms, a hidden layer.

    Gaussians are taken from the data, or computed here where the data hold distances.

    Args:
        width: Features per atom.
        depth: Convolutions.
    """

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(119, width)
        self.convs = nn.ModuleList(CGConv(width, dim=len(CENTERS), batch_norm=True) for _ in range(depth))
        self.register_buffer("centers", torch.tensor(CENTERS, dtype=torch.float32))
        self.head = nn.Sequential(nn.Linear(width, 128), nn.Softplus(), nn.Linear(128, 1))

    def forward(self, batch: Data) -> Tensor:
        """Return one number per crystal (B,)."""
        h, e = self.embed(batch.z), batch.edge_attr
        if e.shape[1] == 1:  # distances
            e = torch.exp(-((e - self.centers) ** 2) / 0.2**2)
        for conv in self.convs:
            h = conv(h, batch.edge_index, e)
        return self.head(global_mean_pool(h, batch.batch))[:, 0]


def epoch_of(crystals: Sequence[Data], batch_size: int, device: str = "cpu") -> Callable[[], None]:
    """Return a call that trains a fresh `CGConvNet` for one epoch more, as PyG's examples do."""
    model = CGConvNet().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(crystals, batch_size=batch_size, shuffle=True, pin_memory=device == "cuda")

    def epoch() -> None:
        model.train()
        total = 0.0
        for batch in loader:
            batch = batch.to(device)
            optimizer.zero_grad()
            loss = nn.functional.l1_loss(model(batch), batch.y)
            loss.backward()
            optimizer.step()
            total += loss.item() * batch.num_graphs

    return epoch


@torch.no_grad()
def predict_files(model: CGConvNet, files: Sequence[Path], output: Path) -> None:
    """Predict CIF files into a CSV table, in batches of 256."""
    crystals = [to_data(*crystal_graph(parse_cif(file.read_text()))) for file in files]
    values = torch.cat([model(batch) for batch in DataLoader(crystals, batch_size=256)]).tolist()
    with open(output, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["material_id", "value"])
        writer.writerows((file.stem, value) for file, value in zip(files, values, strict=True))
