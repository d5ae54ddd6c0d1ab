"""``cgnn prepare``, and the options that say where work is done."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from samples import Document, Run, changed, overlap, read_table

from cgnn.data.store import GraphStore


def test_graphs_are_used_in_place_of_the_crystals(cgnn: Run, config: Path, export: Path, tmp_path: Path) -> None:
    graphs = tmp_path / "set.graphs"
    done = cgnn("prepare", export, "--output", graphs, "--config", config)
    assert done.code == 0
    assert done.err.splitlines()[-2:] == [f"graphs: {graphs}", "40 crystals used, none set aside"]
    for data, run in ((export, "crystals"), (graphs, "graphs")):
        assert cgnn("train", config, "-o", f"data.path={data}", "--output", tmp_path / run).code == 0
    first, second = (tmp_path / run / "best" / "model.safetensors" for run in ("crystals", "graphs"))
    assert history(first) == history(second)
    assert cgnn("predict", second, graphs, "--output", tmp_path / "of_graphs.csv").code == 0
    assert cgnn("predict", second, export, "--output", tmp_path / "of_crystals.csv").code == 0
    rows, others = (read_table(tmp_path / f"of_{kind}.csv") for kind in ("graphs", "crystals"))
    assert [row["material_id"] for row in rows] == [row["material_id"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert float(row["bulk_modulus"]) == pytest.approx(float(other["bulk_modulus"]), rel=2e-6)


def history(model: Path) -> list[dict[str, float]]:
    lines = (model.parents[1] / "history.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_every_engine_leaves_the_same_files(
    cgnn: Run, engine: str, trained: Path, export: Path, tmp_path: Path
) -> None:
    for place, options in (("one", ()), ("two", ("--engine", engine, "--workers", 2))):
        (tmp_path / place).mkdir()
        assert cgnn("prepare", export, "--output", tmp_path / place / "set.graphs", *options).code == 0
        assert cgnn("predict", trained, export, "--output", tmp_path / place / "p.csv", *options).code == 0
    for name in ("set.graphs", "p.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_set_aside_is_listed(cgnn: Run, documents: list[Document], tmp_path: Path) -> None:
    data = tmp_path / "some.json.gz"
    data.write_bytes(gzip.compress(json.dumps(changed(documents, {3: overlap})).encode()))
    graphs = tmp_path / "set.graphs"
    done = cgnn("prepare", data, "--output", graphs)
    assert done.code == 3
    assert "39 crystals used, 1 set aside" in done.err
    (row,) = read_table(tmp_path / "set.set_aside.csv")
    assert row["material_id"] == documents[3]["material_id"]
    assert len(GraphStore(graphs)) == 39
    assert cgnn("prepare", data, "--output", graphs, "--strict").code == 2


def test_bad_requests(cgnn: Run, config: Path, trained: Path, export: Path, tmp_path: Path) -> None:
    graphs = tmp_path / "set.graphs"
    assert cgnn("prepare", export, "--output", graphs).code == 0
    requests = {
        "files of prepared graphs end in .graphs": ("prepare", export, "--output", tmp_path / "set.csv"),
        "no such file": ("prepare", tmp_path / "none.json", "--output", graphs),
        "graph.k is 12 there, 7 here": ("train", config, "-o", f"data.path={graphs}", "-o", "graph.k=7"),
        "did you mean 'processes'": ("predict", trained, export, "--engine", "proceses"),
        "columns can't be chosen any more": ("predict", trained, graphs, "--id-column", "name"),
    }
    for words, request in requests.items():
        output = () if "--output" in request else ("--output", tmp_path / "result.csv")
        done = cgnn(*request, *output)
        assert (done.code, words in done.err) == (2, True), done.err
    (tmp_path / "broken.graphs").write_bytes(graphs.read_bytes()[:-1])
    done = cgnn("predict", trained, tmp_path / "broken.graphs", "--output", tmp_path / "result.csv")
    assert (done.code, "damaged" in done.err) == (2, True)
