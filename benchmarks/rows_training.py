"""One training epoch: ours as a user gets it, against PyG's network and loader on the same edges."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import baselines
import inputs
import numpy as np
import torch
from clock import Ratio, alternate, compare, seconds
from torch_geometric.data import Data

from cgnn.config import Config, build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.graph.fields import distances
from cgnn.train.loop import fit

AGAINST = "PyG `CGConv` network and `DataLoader`"
WORK = "one training epoch, width 64, depth 3, batch 256, one thread"


def training(quick: bool) -> Ratio:
    """Measure an epoch on the CPU; the baseline meets denormal numbers as they come."""
    return _on_cpu(quick, False, WORK, 6, "")


def training_flushed(quick: bool) -> Ratio:
    """Measure the same with denormals flushed in the baseline too."""
    return _on_cpu(quick, True, f"{WORK}, denormals flushed in the baseline too", 1.5, "aim 3")


def training_gpu(quick: bool) -> Ratio | str:
    """Measure an epoch on a GPU with batches of 1,024."""
    if not torch.cuda.is_available():
        return "no GPU at hand"
    work = f"one training epoch on {torch.cuda.get_device_name()}, width 64, depth 3, batch 1,024"
    return _compared(quick, "cuda", 1024, work, 10, "")


def training_torch(quick: bool) -> Ratio:
    """Measure what the compiled kernel gains: our epoch by torch's operations alone against the usual one."""
    return _other_way(quick, {}, "our own network by torch's operations alone")


def training_bf16(quick: bool) -> Ratio:
    """Measure the same with bfloat16 where torch finds it safe (`train.precision`)."""
    return _other_way(quick, {"precision": "bf16-mixed"}, "the same in bfloat16 (`train.precision: bf16-mixed`)")


def training_compiled(quick: bool) -> Ratio:
    """Measure the same with torch's compiler (`train.compile`); the first epoch, which compiles, does not count."""
    return _other_way(quick, {"compile": True}, "the same by torch's compiler (`train.compile: true`), compiled before")


def _other_way(quick: bool, options: dict[str, Any], against: str) -> Ratio:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = _settings(quick, "cpu", 256, folder)
        other = config.model_copy(update={"train": config.train.model_copy(update=options)})
        dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
        indices = np.arange(len(dataset))[: 64 if quick else None]
        times = alternate(
            lambda: _without_kernel(lambda: _ours(other, dataset, indices, Path(folder))),
            lambda: _ours(config, dataset, indices, Path(folder)),
            2 if quick else 3,
        )
    return compare(WORK, against, "s per epoch", times, (1, 1), None)


def _without_kernel(measure: Callable[[], float]) -> float:
    with mock.patch("cgnn.model.network.kernel", return_value=None):
        return measure()


def _on_cpu(quick: bool, flush: bool, work: str, floor: float, note: str) -> Ratio:
    torch.set_num_threads(1)
    try:
        return _compared(quick, "cpu", 256, work, floor, note, flush)
    finally:
        torch.set_flush_denormal(False)


def _compared(quick: bool, device: str, batch: int, work: str, floor: float, note: str, flush: bool = False) -> Ratio:
    with tempfile.TemporaryDirectory() as folder:
        config = _settings(quick, device, batch, folder)
        dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
        indices = np.arange(len(dataset))[: 64 if quick else None]
        # of the two usual ways the one that is faster for the baseline: denormals cost less where they are computed
        stored = flush or device == "cuda"
        plain = baselines.epoch_of(_for_pyg(dataset, indices, stored), config.train.batch_size, device)
        times = alternate(
            lambda: _baseline(plain, device, flush),
            lambda: _ours(config, dataset, indices, Path(folder)),
            2 if quick else 5,
        )
    atoms, edges = dataset.sizes()
    size = f"{len(indices):,} crystals, {atoms[indices].mean():.1f} atoms and {edges[indices].mean():.0f} edges each"
    against = f"{AGAINST}, Gaussians {'stored per edge' if stored else 'computed in each step'}"
    return compare(work, against, "s per epoch", times, (1, 1), floor, "; ".join(filter(None, [size, note])))


def _settings(quick: bool, device: str, batch: int, folder: str) -> Config:
    return build(
        {
            "targets": [{"name": "bulk_modulus", "column": "bulk_modulus.vrh", "unit": "GPa", "transform": "log10"}],
            "data": {"path": str(inputs.elastic_export()), "cache": folder},
            "model": {"width": 64, "depth": 3},
            "train": {"epochs": 2, "batch_size": 16 if quick else batch, "threads": 1, "device": device},
        }
    )


def _for_pyg(dataset: CrystalDataset, indices: np.ndarray, expand: bool) -> list[Data]:
    """Return our graphs as PyG's users store theirs, with Gaussians or distances; labels scaled as ours are."""
    labels = np.log10(dataset.label(dataset.targets[0], indices))
    labels = (labels - labels.mean()) / labels.std()
    graphs = [dataset.batch([index]) for index in indices]
    return [
        baselines.to_data(graph.edge_index.numpy(), graph.z.numpy(), distances(graph).numpy(), label, expand)
        for graph, label in zip(graphs, labels, strict=True)
    ]


def _baseline(epoch: Callable[[], None], device: str, flush: bool) -> float:
    torch.set_flush_denormal(flush)
    if device == "cuda":
        torch.cuda.synchronize()
    return seconds(epoch)


def _ours(config: Config, dataset: CrystalDataset, indices: np.ndarray, folder: Path) -> float:
    """Return the seconds of the better of two epochs, as the history of a run says them."""
    fitted = fit(config, dataset, {"train": indices, "val": indices[:0]}, folder / "run")
    return min(row["seconds"] for row in fitted.history)
