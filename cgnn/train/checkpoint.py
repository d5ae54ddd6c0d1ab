"""Models and training states on disk: one safetensors file each, checked before anything is used.

A file holds tensors and, in its header, one JSON text with everything else. A checksum over both finds every
altered byte. Nothing is pickled. Files are replaced atomically.

A model has one or several members: the tensors of member i are named ``i.<name>``. Tensors named
``reference.<name>`` belong to no member.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
from cgnn.model.heads import crystal_width
from cgnn.train.trust.confidence import Confidence

VERSION = 2
"""Version of the model file; raise it with every change and add the upgrade from the one before."""

Tensors = dict[str, Tensor]
Parts = tuple[dict[str, Any], Tensors]
"""What a file holds: the JSON part and the tensors."""


def _with_members(content: dict[str, Any], tensors: Tensors) -> Parts:
    """Version 1 held one network, without a number before its names."""
    named = {f"0.{name}": tensor for name, tensor in tensors.items()}
    return {**content, "members": 1, "calibration": {}}, named


UPGRADES: dict[int, Callable[[dict[str, Any], Tensors], Parts]] = {1: _with_members}
"""Version -> function that turns JSON part and tensors of that version into the next one's."""

REFERENCE = "reference"
"""Prefix of the tensors that belong to no member."""

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
        calibration: What turns spreads into errors (`Confidence.to_dict`); empty where it was not calibrated.
        versions: Versions of the packages and of the element tables it was made with.
        reference: Small tensors that tell how far a crystal is from those of the training (`Confidence.to_tensors`).
    """

    config: Config
    elements: tuple[int, ...]
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "cgnn": cgnn.__version__,
            "torch": str(torch.__version__),
            "element tables": str(ELEMENT_TABLE_VERSION),
        }
    )
    reference: Tensors = field(default_factory=dict, compare=False)  # tensors do not compare to one truth value

    def confidence(self) -> Confidence:
        """Return what the model knows of its own errors.

        Raises:
            CheckpointError: ``calibration`` or ``reference`` are not those of such a model.
        """
        width = crystal_width(self.config.of_member(0).model)
        return Confidence.from_stored(self.calibration, self.reference, self.config.targets, width)


class StoredModel(NamedTuple):
    """What a model file holds.

    Args:
        members: The networks, in evaluation mode; a prediction is their mean.
        info: What travels with them.
    """

    members: tuple[CrystalGNN, ...]
    info: ModelInfo


def save_model(path: str | Path, members: Sequence[CrystalGNN], info: ModelInfo) -> None:
    """Write a self-contained model file."""
    rest = {name: value for name, value in vars(info).items() if name != REFERENCE}
    content = {
        "kind": "model",
        "version": VERSION,
        "graph_schema": SCHEMA,
        "members": len(members),
        **rest,
        "config": info.config.model_dump(mode="json"),
    }
    tensors = {
        f"{number}.{name}": tensor
        for number, member in enumerate(members)
        for name, tensor in member.state_dict().items()
    }
    write_tensors(path, tensors | {f"{REFERENCE}.{name}": t for name, t in info.reference.items()}, content)


def load_model(path: str | Path) -> StoredModel:
    """Read a model file.

    Returns:
        The networks in evaluation mode, on the CPU, and what travels with them.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind or of a newer version.
    """
    found, description = read_tensors(path)
    content, tensors = _upgraded(description, found, path)
    parts = _by_prefix(tensors)
    reference = parts.pop(REFERENCE, {})
    try:
        info = ModelInfo(
            config=configs.build(content["config"], source=str(path)),
            elements=tuple(int(z) for z in content["elements"]),
            baselines=dict(content["baselines"]),
            summary=dict(content["summary"]),
            source=dict(content["source"]),
            calibration=dict(content["calibration"]),
            versions=dict(content["versions"]),
            reference=reference,
        )
        if type(content["members"]) is not int or content["members"] != max(len(parts), 1):
            raise ValueError(f"holds the weights of {len(parts)} members, expected {content['members']!r}")
        members = [
            _member(info.config.of_member(number), parts.get(str(number), {})) for number in range(content["members"])
        ]
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a model this version can read: {why}") from None
    _check_numbers(parts, members, path)
    _check_finite({f"{REFERENCE}.{name}": tensor for name, tensor in reference.items()}, path)
    try:
        info.confidence()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return StoredModel(tuple(member.eval() for member in members), info)


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """Return tensors by what stands before the first dot of their names, and by the rest."""
    parts: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        parts.setdefault(prefix, {})[rest] = tensor
    return parts


def _member(config: Config, tensors: Tensors) -> CrystalGNN:
    with torch.device("meta"):  # takes no memory, whatever sizes the file asks for
        member = CrystalGNN(config.model, config.targets)
    member.load_state_dict(tensors, assign=True)
    return member


def _check_numbers(parts: Mapping[str, Tensors], members: Sequence[CrystalGNN], path: str | Path) -> None:
    """Check that all members hold the numbers of one precision, and such that can be calculated with."""
    with torch.device("meta"):
        all_expected = [CrystalGNN(member.config, member.targets).state_dict() for member in members]
    precision = next(parts["0"][name].dtype for name, tensor in all_expected[0].items() if tensor.is_floating_point())
    for number, expected in enumerate(all_expected):
        prefix, tensors = str(number), parts[str(number)]
        for name, tensor in tensors.items():
            wanted = precision if expected[name].is_floating_point() else expected[name].dtype
            if tensor.dtype != wanted or precision not in (torch.float32, torch.float64):
                raise CheckpointError(f"{path}: {prefix}.{name} holds numbers of another type ({tensor.dtype})")
        _check_finite({f"{prefix}.{name}": tensor for name, tensor in tensors.items()}, path)


def _check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite")


def _upgraded(content: dict[str, Any], tensors: Tensors, path: str | Path) -> Parts:
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
        content, tensors = UPGRADES[version](content, tensors)
        version += 1
    return content, tensors


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
