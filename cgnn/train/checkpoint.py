"""Models and training states on disk: one safetensors file each, checked before anything is used.

A file holds tensors and, in its header, one JSON text with everything else. A checksum over both finds every
altered byte. Nothing is pickled. Files are replaced atomically.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import cgnn
from cgnn import config as configs
from cgnn.config import Config
from cgnn.errors import CheckpointError, ConfigError
from cgnn.files import write_bytes
from cgnn.graph.build import SCHEMA
from cgnn.model import CrystalGNN
from cgnn.model.embed import ELEMENT_TABLE_VERSION

VERSION = 1
"""Version of the model file; raise it with every change and add the upgrade from the one before."""

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Version -> function that turns the JSON part of that version into the next one's."""

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"


@dataclass(frozen=True)
class ModelInfo:
    """What travels with the weights.

    Args:
        config: All settings of the run, graph settings and targets among them.
        elements: Atomic numbers that occurred in training.
        baselines: Target name -> what predicting the training mean needs (`cgnn.train.metrics.Baseline`).
        summary: Numbers of the training: crystals, epoch, validation scores.
        source: Where the training crystals come from: file, and database version and licence where known.
        versions: Versions of the packages and of the element tables it was made with.
    """

    config: Config
    elements: tuple[int, ...]
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "cgnn": cgnn.__version__,
            "torch": str(torch.__version__),
            "element tables": str(ELEMENT_TABLE_VERSION),
        }
    )


def save_model(path: str | Path, model: CrystalGNN, info: ModelInfo) -> None:
    """Write a self-contained model file."""
    content = {
        "kind": "model",
        "version": VERSION,
        "graph_schema": SCHEMA,
        **asdict(info),
        "config": info.config.model_dump(mode="json"),
    }
    write_tensors(path, model.state_dict(), content)


def load_model(path: str | Path) -> tuple[CrystalGNN, ModelInfo]:
    """Read a model file.

    Returns:
        The network in evaluation mode, on the CPU, and what travels with it.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind or of a newer version.
    """
    tensors, content = read_tensors(path)
    content = _upgraded(content, path)
    try:
        info = ModelInfo(
            config=configs.build(content["config"], source=str(path)),
            elements=tuple(int(z) for z in content["elements"]),
            baselines=dict(content["baselines"]),
            summary=dict(content["summary"]),
            source=dict(content["source"]),
            versions=dict(content["versions"]),
        )
        with torch.device("meta"):  # takes no memory, whatever sizes the file asks for
            model = CrystalGNN(info.config.model, info.config.targets)
        expected = model.state_dict()
        model.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a model this version can read: {why}") from None
    _check_numbers(tensors, expected, path)
    return model.eval(), info


def _check_numbers(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path) -> None:
    precision = tensors[next(iter(tensors))].dtype
    for name, tensor in tensors.items():
        wanted = precision if expected[name].is_floating_point() else expected[name].dtype
        if tensor.dtype != wanted or precision not in (torch.float32, torch.float64):
            raise CheckpointError(f"{path}: {name} holds numbers of another type ({tensor.dtype})")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite")


def _upgraded(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    if content.get("kind") != "model":
        raise CheckpointError(f"{path}: holds a {content.get('kind')!r}, expected a model")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION or any(v not in UPGRADES for v in range(version, VERSION)):
        raise CheckpointError(
            f"{path}: model format {version}, this cgnn reads up to {VERSION}; install the cgnn it was made with"
        )
    if content.get("graph_schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: trained on graphs of schema {content.get('graph_schema')}, this cgnn builds {SCHEMA}; "
            "install the cgnn it was made with"
        )
    while version < VERSION:
        content = UPGRADES[version](content)
        version += 1
    return content


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and a JSON value as one checksummed safetensors file, all or nothing."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    description = {"checksum": _checksum(plain, content), "content": content}
    # One entry only: safetensors writes several in an order that changes from call to call.
    write_bytes(path, save(plain, {"cgnn": json.dumps(description, sort_keys=True)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON value of a file, after its checksum was found right.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
        description = json.loads(metadata["cgnn"])
        content, checksum = description["content"], description["checksum"]
        is_right = _checksum(tensors, content) == checksum
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path}: damaged or not a file of cgnn: {error}") from None
    if not is_right:
        raise CheckpointError(f"{path}: checksum differs: the file was altered or damaged")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged: its description is no mapping")
    return tensors, content


def _checksum(tensors: Mapping[str, Tensor], content: Any) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
