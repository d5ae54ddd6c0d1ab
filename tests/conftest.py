"""What all tests share: seeds, real data where it lies, a small data set, a small trained run."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "data" / "elasticity-emt.json.gz"


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_worker() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep prepared graphs of tests out of the user's cache."""
    monkeypatch.setenv("CGNN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261121)


@pytest.fixture(params=["compiled", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Neighbours from C, and as where there was no compiler."""
    from cgnn.kernels import load

    if request.param == "numpy":
        monkeypatch.setattr("cgnn.kernels.neighbors._library", lambda: None)
    elif load("neighbors") is None:
        pytest.skip("the library of neighbours was not built")
    return str(request.param)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("CGNN_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "elasticity.json.gz").is_file():
        pytest.skip(f"no real data at {folder} (set CGNN_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def embedded_documents() -> list[dict[str, Any]]:
    with gzip.open(EMBEDDED) as handle:
        documents: list[dict[str, Any]] = json.load(handle)
    return documents


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, embedded_documents: list[dict[str, Any]]) -> Path:
    """An export of forty crystals of the embedded set."""
    path = tmp_path_factory.mktemp("export") / "export.json.gz"
    path.write_bytes(gzip.compress(json.dumps(embedded_documents[::12][:40]).encode(), mtime=0))
    return path


MODULI = [
    {"name": f"{kind}_modulus", "column": f"{kind}_modulus.vrh", "unit": "GPa", "transform": "log10"}
    for kind in ("bulk", "shear")
]


@pytest.fixture(scope="session")
def small_settings(export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run that takes a second."""
    return {
        "targets": MODULI,
        "data": {
            "path": str(export),
            "cache": str(tmp_path_factory.mktemp("cache")),
            "split": {"val": 0.2, "test": 0.2},
        },
        "model": {"width": 8, "depth": 2, "gaussians": 12, "head_width": 8},
        "train": {"epochs": 3, "batch_size": 8, "threads": 1, "device": "cpu"},
    }


@pytest.fixture(scope="session")
def trained(small_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run; not to be changed."""
    from cgnn.config import build
    from cgnn.train import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    train(build(small_settings), folder)
    return folder


@pytest.fixture(scope="session")
def calibrated(
    small_settings: dict[str, Any], embedded_documents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run with enough crystals to know its errors, with a target of atoms; not to be changed.

    ``data.jsonl`` beside it holds its crystals.
    """
    from cgnn.config import build
    from cgnn.train import train

    folder = tmp_path_factory.mktemp("calibrated")
    lines = []
    for number, document in enumerate(embedded_documents[::3]):
        radii = [len(site["species"][0]["element"]) + 0.1 * (number % 7) for site in document["structure"]["sites"]]
        shear = None if number % 9 == 4 else document["shear_modulus"]
        lines.append(json.dumps({**document, "shear_modulus": shear, "radius": radii}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    values = json.loads(json.dumps(small_settings))
    values["targets"].append({"name": "radius", "level": "atom", "unit": "Å"})
    values["data"] |= {"path": str(folder / "data.jsonl"), "split": {"val": 0.2, "test": 0.1}}
    values["model"] |= {"spread": True}
    values["train"] |= {"epochs": 2, "batch_size": 32}
    train(build(values), folder / "run")
    return folder / "run"
