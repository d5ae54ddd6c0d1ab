"""Predictions by every engine: the same bytes, whatever happens to the workers."""

from __future__ import annotations

import io
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cgnn.data.engines import ENGINES
from cgnn.data.records import Record, blocks, read, without_duplicates
from cgnn.predict import Predictor
from cgnn.predict.forward import Network
from cgnn.predict.predictions import joined

ENGINE_NAMES = sorted(set(ENGINES) - {"serial"})
COPIES = 12


def available(engine: str) -> str:
    if engine == "ray":
        pytest.importorskip("ray")
    return engine


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained, "cpu")


@pytest.fixture(scope="module")
def crystals(embedded_documents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousand crystals in many blocks: good ones, broken ones, an unseen element, ids that come again."""
    few = embedded_documents[::3]
    lines = []
    for copy in range(COPIES):
        for number, document in enumerate(few):
            name = f"c-{copy}-{number}" if number % 20 else f"again-{number}"
            text = json.dumps({**document, "material_id": name})
            if number % 33 == 7:
                text = text.replace('"element": "', '"element": "Q')
            if number % 41 == 3:
                text = text[:-2]
            lines.append(text)
    path = tmp_path_factory.mktemp("crystals") / "crystals.jsonl"
    path.write_text("\n".join(lines))
    assert sum(1 for _ in blocks(path)) > 8
    return path


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(predictor: Predictor, crystals: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    rows, aside, _ = predictor.write(blocks(crystals), folder / "p.csv")
    items = list(without_duplicates(read(crystals)))
    used = [item.material_id for item in items if isinstance(item, Record)]
    assert [line.split(",")[0] for line in (folder / "p.csv").read_text().splitlines()[1:]] == used
    assert [item for item in items if not isinstance(item, Record)] == aside
    assert {"duplicate", "bad_json", "unknown_element"} <= {item.code for item in aside}
    assert rows > 1000
    return written(folder)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_all_engines_write_the_same(
    engine: str,
    predictor: Predictor,
    crystals: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cgnn.data.engines.choice.PATIENCE", 0.0)
    done = []
    predictor.write(blocks(crystals), tmp_path / "p.csv", available(engine), 2, done.append)
    assert written(tmp_path) == expected
    assert sum(done) == sum(1 for _ in read(crystals))


def test_workers_may_build_graphs_alone(
    predictor: Predictor, crystals: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a GPU: graphs come from the workers and are joined for the network, which runs here."""
    twin = Predictor(predictor.members, predictor.info, "cpu")
    monkeypatch.setattr(twin, "device", Elsewhere())
    monkeypatch.setattr("cgnn.predict.predictor.EDGES_ON_DEVICE", 100_000)
    monkeypatch.setattr("cgnn.predict.predictor.Network", lambda *given: Network(*given[:3]))
    twin.write(blocks(crystals), tmp_path / "p.csv", "processes", 2)
    found, known = (pd.read_csv(io.BytesIO(files["p.csv"])) for files in (written(tmp_path), expected))
    assert found["material_id"].tolist() == known["material_id"].tolist()
    for name in twin.units:
        np.testing.assert_allclose(found[name], known[name], rtol=1e-5)
    assert written(tmp_path)["p.set_aside.csv"] == expected["p.set_aside.csv"]


class Elsewhere:
    """A device that is not the processor."""

    type = "elsewhere"


@pytest.mark.gpu
def test_a_gpu_gives_the_same(trained: Path, predictor: Predictor, crystals: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = joined(predictor.stream(blocks(crystals)), predictor.units)
    found = joined(Predictor.load(trained, "cuda").stream(blocks(crystals), "processes", 2), predictor.units)
    assert found.ids == expected.ids
    assert found.set_aside == expected.set_aside
    for name in predictor.units:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)


def test_evaluation_is_the_same(predictor: Predictor, crystals: Path) -> None:
    one = predictor.evaluate(blocks(crystals))
    two = predictor.evaluate(blocks(crystals), "processes", 2)
    assert one.metrics == two.metrics
    assert one.predictions.ids == two.predictions.ids
    assert one.predictions.set_aside == two.predictions.set_aside


def test_crystals_in_memory_go_to_workers(predictor: Predictor, crystals: Path) -> None:
    """Ids of crystals one by one may come again: who gives them knows."""
    records = [item for item in read(crystals) if isinstance(item, Record)]
    pieces = list(predictor.stream(iter(records), "processes", 2))
    assert [name for piece in pieces for name in piece.ids] == [record.material_id for record in records]


@pytest.mark.parametrize("seed", range(3))
def test_killed_workers_change_nothing(
    seed: int, predictor: Predictor, crystals: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    calls = []

    def kill(count: int) -> None:
        calls.append(count)
        children = multiprocessing.active_children()
        if len(calls) % 5 == seed and children:
            children[len(calls) % len(children)].kill()

    predictor.write(blocks(crystals), tmp_path / "p.csv", "processes", 2, kill)
    found, known = written(tmp_path), dict(expected)
    tables = [pd.read_csv(io.BytesIO(files.pop("p.csv"))) for files in (found, known)]
    assert found == known
    # a block that died twice was done crystal by crystal, in batches of other shapes: the last digit may differ
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)
    assert not multiprocessing.active_children()


def test_an_interrupt_leaves_nothing(predictor: Predictor, crystals: Path, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "p.csv").write_text("of yesterday")
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        predictor.write(blocks(crystals), tmp_path / "p.csv", "processes", 2, interrupt)
    assert written(tmp_path) == {"p.csv": b"of yesterday"}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))],
)
def test_screening_can_be_interrupted(
    number: int, trained: Path, crystals: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """A true process, stopped while workers are busy, and started again: the file is that of an unbroken run."""
    command = [sys.executable, "-m", "cgnn.cli", "predict", str(trained), str(crystals), "--engine", "processes"]
    command += ["--workers", "2", "--device", "cpu", "--output", str(tmp_path / "p.csv")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        workers = _busy(process.pid)
        process.send_signal(number)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    assert _gone(workers)
    if number != signal.SIGKILL:
        assert not written(tmp_path)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 3
    found = written(tmp_path)
    assert {name: found[name] for name in expected} == expected


def _below(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_below(child)]
    return found


def _busy(pid: int) -> list[int]:
    """Return all processes below one when its two workers have been forked from their server."""
    for _ in range(12_000):
        servers = [child for child in _below(pid) if len(_below(child)) == 2]
        if servers:
            return _below(pid)
        time.sleep(0.01)
    raise AssertionError("no workers")


def _gone(pids: list[int]) -> bool:
    for _ in range(1000):
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
