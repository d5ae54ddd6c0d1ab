"""``cgnn prepare``, and the options for where work is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import Run

from cgnn.data.engines import ENGINES


def graphs(folder: Path) -> bytes:
    return (folder / "set.graphs").read_bytes()


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"auto"}))
def test_all_engines_prepare_the_same(engine: str, cgnn: Run, mess: Path, tmp_path: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    assert cgnn("prepare", mess / "bad.json", "--output", tmp_path / "a" / "set.graphs").code == 3
    options = ("--engine", engine, "--workers", 2)
    done = cgnn("prepare", mess / "bad.json", "--output", tmp_path / "b" / "set.graphs", *options)
    assert done.code == 3
    assert graphs(tmp_path / "a") == graphs(tmp_path / "b")
    assert done.err.splitlines()[-1] == (
        f"10 crystals used, 2 set aside (all listed in {tmp_path / 'b' / 'set.set_aside.csv'})"
    )
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["set.graphs", "set.set_aside.csv"]


def test_what_is_prepared_trains_like_its_source(cgnn: Run, config: Path, export: Path, tmp_path: Path) -> None:
    assert cgnn("prepare", export, "--output", tmp_path / "set.graphs", "--config", config).code == 0
    path = f"data.path={tmp_path / 'set.graphs'}"
    for name, override in (("a", ()), ("b", ("-o", path))):
        assert cgnn("train", config, "--output", tmp_path / name, *override).code == 0
    for file in ("metrics.json", "predictions.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_settings_of_graphs_count(cgnn: Run, config: Path, export: Path, tmp_path: Path) -> None:
    assert cgnn("prepare", export, "--output", tmp_path / "six.graphs", "-o", "graph.k=6").code == 0
    assert cgnn("prepare", export, "--output", tmp_path / "twelve.graphs").code == 0
    assert (tmp_path / "six.graphs").stat().st_size < (tmp_path / "twelve.graphs").stat().st_size
    refused = cgnn("train", config, "--output", tmp_path / "run", "-o", f"data.path={tmp_path / 'six.graphs'}")
    assert refused.code == 2
    assert "graph.k is 6 there, 12 here" in refused.err


def test_bad_requests(cgnn: Run, mess: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.graphs"
    cases = [
        (("prepare", mess / "good.json", "--output", tmp_path / "set.safetensors"), "end in .graphs"),
        (("prepare", mess / "good.json", "--output", out, "-o", "graph.kk=3"), "did you mean 'k'"),
        (("prepare", mess / "good.json", "--output", out, "--engine", "proceses"), "did you mean 'processes'"),
        (("prepare", mess / "good.json", "--output", out, "--workers", "-1"), "--workers"),
        (("prepare", mess / "nolabel.jsn", "--output", out), "did you mean nolabel.json"),
        (("prepare", mess / "mixed" / "empty.cif", "--output", out), "empty"),
        (("predict", trained, mess / "good.json", "--output", tmp_path / "p.csv", "--engine", "x"), "unknown engine"),
    ]
    for words, message in cases:
        done = cgnn(*words)
        assert done.code == 2, words
        assert message in done.err
    assert not list(tmp_path.iterdir())


def test_strict(cgnn: Run, mess: Path, tmp_path: Path) -> None:
    assert cgnn("prepare", mess / "bad.json", "--output", tmp_path / "set.graphs", "--strict").code == 2
    assert cgnn("prepare", mess / "good.json", "--output", tmp_path / "set.graphs", "--strict").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["set.graphs"]
