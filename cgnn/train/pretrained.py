"""Where a stored model lies: a file, a run folder, or the name of one that comes with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cgnn.errors import CheckpointError, nearest
from cgnn.train.checkpoint import MODEL_FILE

PRETRAINED = {
    "elasticity": "elasticity",
    "formation_energy": "formation_energy",
    "band_gap": "formation_energy",
}
"""Name of a model that comes with the package -> its file, without suffix, in ``cgnn/pretrained``."""


def model_file(path: str | Path) -> Path:
    """Return the file of a model.

    Args:
        path: A model file, a folder with one, a run folder, or an entry of `PRETRAINED`. What exists on disk goes
            before a name.

    Raises:
        CheckpointError: There is none.
    """
    path = Path(path)
    places = [path, path / MODEL_FILE, path / "best" / MODEL_FILE]
    found = next((place for place in places if place.is_file()), None)
    if found is None and str(path) in PRETRAINED and not path.exists():
        found = Path(str(resources.files("cgnn"))) / "pretrained" / f"{PRETRAINED[str(path)]}.safetensors"
    if found is None or not found.is_file():
        guess = nearest(str(path), PRETRAINED)
        hint = f"; did you mean {guess}?" if guess else ""
        raise CheckpointError(
            f"{path}: no model found (expected a run folder with best/{MODEL_FILE}, a model file, or one of "
            f"{', '.join(PRETRAINED)}){hint}"
        )
    return found
