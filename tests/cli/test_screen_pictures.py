"""What ``cgnn screen`` draws: the Ashby diagram, its page, a page for each finalist, the funnel."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml
from pymatgen.core import Structure
from samples import Document, Run

STAGES = [
    {"kind": "filter", "rule": "not metal"},
    {"kind": "predict", "model": "elasticity"},
    {"kind": "derive", "properties": ["hardness_mo", "toughness_mo", "poisson_ratio"], "draws": 50},
    {"kind": "filter", "name": "plausible", "rule": "0 <= poisson_ratio <= 0.4"},
    {"kind": "rank", "of": "hardness_mo", "keep": 6},
    {"kind": "rank", "by": "pareto", "of": ["hardness_mo", "toughness_mo"], "keep": 3},
]


@pytest.fixture(scope="module")
def carbides(embedded_documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = []
    for number, document in enumerate(embedded_documents[::16][:30]):
        structure = Structure.from_dict(document["structure"])
        if number % 5:  # the others stay metals
            structure.replace(0, "C")
            structure.scale_lattice(8.0 * len(structure))
        documents.append({"material_id": f"m {number}/x", "structure": structure.as_dict()})
    path = tmp_path_factory.mktemp("carbides") / "some.json.gz"
    path.write_bytes(gzip.compress(json.dumps(documents).encode()))
    return path


def test_pictures(cgnn: Run, carbides: Path, tmp_path: Path) -> None:
    stages, output = tmp_path / "screen.yaml", tmp_path / "screen"
    stages.write_text(yaml.safe_dump({"stages": STAGES}))
    link = ["--link", "https://example.org/{id}"]
    found = cgnn("screen", stages, carbides, "--output", output, "--engine", "serial", *link)
    assert found.code == 0, found.err
    assert f"{output / 'ashby.png'}, {output / 'ashby.html'}" in found.err.replace("\n", "")
    counts = {count["stage"]: count["after"] for count in json.loads((output / "counts.json").read_text())}
    page = (output / "ashby.html").read_text()
    assert f"{counts['plausible']:,} crystals" in page
    assert '"https://example.org/{id}".split(' in page
    pages = sorted(path.name for path in (output / "finalists").glob("*.html"))
    assert len(pages) == counts["rank 2"] == 3
    for name in pages:
        assert f"finalists/{name}" in page.replace("\\u002f", "/")
        assert name.removesuffix(".html") + ".cif" in [path.name for path in (output / "finalists").iterdir()]
    assert (output / "ashby.png").stat().st_size > 20_000
    assert (output / "funnel.png").stat().st_size > 10_000
    assert (output / "hits.png").stat().st_size > 10_000


def test_only_the_first_finalists_get_pages(
    cgnn: Run, carbides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgnn.cli.screen_pictures.PAGES", 2)
    stages, output = tmp_path / "screen.yaml", tmp_path / "screen"
    stages.write_text(yaml.safe_dump({"stages": STAGES}))
    assert cgnn("screen", stages, carbides, "--output", output, "--engine", "serial").code == 0
    pages = sorted(path.name[:3] for path in (output / "finalists").glob("*.html"))
    assert pages == ["001", "002"]
    assert len(list((output / "finalists").glob("*.cif"))) == 3


def test_without_hardness_there_is_only_the_funnel(cgnn: Run, carbides: Path, tmp_path: Path) -> None:
    stages, output = tmp_path / "screen.yaml", tmp_path / "screen"
    stages.write_text(yaml.safe_dump({"stages": [{"kind": "rank", "by": "value", "of": "density", "keep": 2}]}))
    found = cgnn("screen", stages, carbides, "--output", output, "--engine", "serial")
    assert found.code == 0, found.err
    assert (output / "funnel.png").is_file()
    assert (output / "hits.png").is_file()
    assert not list(output.glob("ashby*"))
    assert "ashby" not in found.err


def test_an_empty_short_list_says_which_stage_emptied_it(cgnn: Run, carbides: Path, tmp_path: Path) -> None:
    stages, output = tmp_path / "screen.yaml", tmp_path / "screen"
    rules = [{"kind": "filter", "rule": "hull < 0.1"}, {"kind": "rank", "by": "value", "of": "density"}]
    stages.write_text(yaml.safe_dump({"columns": {"hull": "energy_above_hul"}, "stages": rules}))
    found = cgnn("screen", stages, carbides, "--output", output, "--engine", "serial")
    assert found.code == 0, found.err
    assert "warning: columns.hull: no crystal of the input has a number 'energy_above_hul'" in found.err
    assert "no finalists: stage 'filter' dropped all 30 crystals (--why ID)" in found.err
    assert (output / "funnel.png").is_file()
    assert not (output / "hits.png").exists()


def test_without_plotly_the_picture_stays(
    cgnn: Run, carbides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    stages, output = tmp_path / "screen.yaml", tmp_path / "screen"
    stages.write_text(yaml.safe_dump({"stages": STAGES}))
    found = cgnn("screen", stages, carbides, "--output", output, "--engine", "serial")
    assert found.code == 0, found.err
    assert 'no plots: pages need plotly: pip install "cgnn[plots]"' in found.err
    assert (output / "ashby.png").is_file()
    assert not (output / "ashby.html").exists()
