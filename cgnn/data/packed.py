"""Batches cut from packed fields by index arithmetic, on whatever device the fields lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Batch, Data

from cgnn.graph.fields import FIELDS

Ints = NDArray[np.int64]
CPU = torch.device("cpu")


class PackedGraphs:
    """Fields of many crystals, one crystal after another: in memory, on a memory-mapped file, or on a device.

    Args:
        fields: The stored fields of all crystals, as numpy arrays or tensors.
        pointers: First entry of each crystal under ``atom`` and ``edge`` (n + 1,).
        device: Where the fields lie.
    """

    def __init__(self, fields: Mapping[str, Any], pointers: Mapping[str, Ints], device: torch.device = CPU) -> None:
        self.fields, self.pointers, self.device = fields, pointers, device

    def to(self, device: torch.device) -> PackedGraphs:
        """Return the same graphs as tensors on a device."""
        fields = {name: torch.tensor(field, device=device) for name, field in self.fields.items()}
        return PackedGraphs(fields, self.pointers, device)

    def batch(self, rows: Ints) -> Batch:
        """Return crystals as one PyG ``Batch``, without a loop over crystals."""
        places = {"crystal": torch.from_numpy(rows).to(self.device)}
        counts = {}
        for level, pointers in self.pointers.items():
            starts = pointers[rows]
            counts[level] = pointers[rows + 1] - starts
            places[level] = runs(starts, counts[level], self.device)
        fields = {name: _take(self.fields[name], places[field.level]) for name, field in FIELDS.items()}
        return join(fields, counts["atom"], counts["edge"])


def join(fields: Mapping[str, Tensor], atoms: Ints, edges: Ints) -> Batch:
    """Return one PyG ``Batch`` of crystals whose fields stand one after another.

    Args:
        fields: Stored fields; ``source`` and ``target`` count atoms from 0 in each crystal.
        atoms: Number of atoms of each crystal (B,).
        edges: Number of edges of each crystal (B,).
    """
    device = fields["z"].device
    ptr = np.concatenate([[0], np.cumsum(atoms)])
    first = torch.from_numpy(ptr[:-1]).to(device)
    offset = _repeat(first, edges)
    tensors: dict[str, Any] = {
        name: fields[name].to(field.used) for name, field in FIELDS.items() if name not in ("source", "target")
    }
    batch = Batch(
        _base_cls=Data,
        edge_index=torch.stack([fields["source"] + offset, fields["target"] + offset]),
        batch=_repeat(torch.arange(len(atoms), device=device), atoms),
        ptr=torch.from_numpy(ptr).to(device),
        **tensors,
    )
    batch._num_graphs = len(atoms)
    return batch


def _take(field: Any, places: Tensor) -> Tensor:
    # numpy for arrays, because a tensor on a read-only map would end the process when somebody writes to it
    return field.index_select(0, places) if isinstance(field, Tensor) else torch.from_numpy(field[places.numpy()])


def runs(starts: Ints, counts: Ints, device: torch.device) -> Tensor:
    """Return start, start + 1, ... for each start, as many as its count, one after another."""
    shift = torch.from_numpy(starts - (np.cumsum(counts) - counts)).to(device)
    return torch.arange(int(counts.sum()), device=device) + _repeat(shift, counts)


def _repeat(values: Tensor, counts: Ints) -> Tensor:
    """Return each value as often as its count says; the length is known, so no device has to be asked for it."""
    return values.repeat_interleave(torch.from_numpy(counts).to(values.device), output_size=int(counts.sum()))
