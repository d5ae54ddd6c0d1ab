"""What the documents promise: every command and example of the README runs, links lead somewhere, floors hold."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pymatgen.core import Structure

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CONVENTIONS.md", "data/README.md"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks() -> list[tuple[str, str]]:
    """Return language and text of the fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def indented(pattern: str) -> list[str]:
    """Return the lines of indented blocks that match."""
    return [line.strip() for line in README.splitlines() if re.match(rf" {{4,}}{pattern}", line)]


@pytest.fixture
def place(
    tmp_path: Path, embedded_documents: list[dict[str, Any]], export: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder the README has in mind: settings, an export, a test set, candidates."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(export, tmp_path / "export.json.gz")
    apart = embedded_documents[5::50]
    (tmp_path / "test.json.gz").write_bytes(gzip.compress(json.dumps(apart).encode()))
    (tmp_path / "candidates").mkdir()
    for document in embedded_documents[7::200]:
        crystal = Structure.from_dict(document["structure"])
        crystal.to(filename=str(tmp_path / "candidates" / f"{document['material_id']}.cif"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "cgnn"
        yield words


def test_the_commands_and_examples_run_as_they_stand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Called in this process instead of a shell each: torch is imported once (`tests/cli` runs the true command)."""
    from cgnn.cli import main

    said = []
    for language, text in blocks():
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            continue
        assert language == "bash"
        for words in commands(text):
            with pytest.raises(SystemExit, match=r"^0$"):
                main(words)
            said.append(words[0])
    ours = ["predict", "predict", "derive", "train", "train", "combine", "screen"]
    looked = ["probe", "explain", "embed"]
    last = ["prepare", "train", "predict", "profile", "cv"]
    assert said == ["train", "evaluate", "predict", "info", *ours, *looked, "train", *last]
    shown = capsys.readouterr().out
    assert re.search(r"material_id +bulk_modulus +(?:bulk_modulus_std .*)?shear_modulus\b.*\s+0 +crystal-0 +\d", shown)
    assert (place / "predictions.csv").is_file()
    assert (place / "predictions.csv.units.json").is_file()
    assert (place / "runs" / "elasticity" / "test" / "parity_bulk_modulus.png").is_file()
    assert (place / "runs" / "cv" / "cv.json").is_file()
    listed = set(re.findall(r"[\w/]+\.(?:yaml|json|jsonl|csv|txt|safetensors)\b", _listing()))
    run = place / "runs" / "elasticity"
    assert listed == {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} - {
        "predictions.csv.units.json",
        *(str(path.relative_to(run)) for path in (run / "test").iterdir()),
    }


def _listing() -> str:
    found = re.search(r"^    runs/elasticity/\n((?: {6}.*\n)+)", README, re.MULTILINE)
    assert found
    return "\n".join(re.split(r" {3,}(?=one|the|what)|(?<=csv) scores", line)[0] for line in found[1].splitlines())


def test_the_commands_that_are_not_run_exist() -> None:
    from cgnn.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    assert {line.split()[1] for line in indented("cgnn ")} <= known
    # Bags need labels that the embedded set has not (tests/cli/test_pu_commands.py runs them) and the study of depth
    # takes hours (tests/cli/test_depth_command.py runs a small one); the download needs the
    # internet; the training on real moduli is tests/integration/test_real_moduli.py.
    assert [line.split()[1] for line in indented("cgnn ")] == ["pu", "pu", "pu", "depth", "fetch", "train"]


def test_the_extras_exist() -> None:
    named = re.findall(r"\.\[([\w,]+)\]", README + (ROOT / "Makefile").read_text())
    assert named
    assert {extra for names in named for extra in names.split(",")} <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith(("http", "mailto:"))]
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_targets_named_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    files = re.findall(r"`((?:configs|examples|tests|data|cgnn)/[\w./-]+\.\w+)`", text)
    files += re.findall(r"\bpython ((?:\w+/)*\w+\.py)", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE)
    assert set(named) <= rules
    if document == "README.md":
        assert {"demo", "test"} <= set(named)


RUNS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "screen.yaml")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_every_config_loads(path: Path) -> None:
    from cgnn.config import build, load
    from cgnn.strict import dump
    from cgnn.yaml_text import parse_yaml

    config = load(path)
    assert build(parse_yaml(dump(config))) == config
    assert f"configs/{path.name}" in README


def test_ci_runs_the_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "make test"
    assert "make test" in indented("make ")


FLOORS = {"torch": "2.10", "pymatgen": "2025.10.7", "lightning": "2.6.4"}
"""Below these: CVE-2026-24747 (torch), code run by data files (pymatgen), a compromised release (lightning)."""


@pytest.mark.parametrize("name", FLOORS)
def test_floors(name: str) -> None:
    (needed,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == name]
    lowest = [Version(part.version) for part in needed.specifier if part.operator == ">="]
    assert len(lowest) == 1
    assert lowest[0] >= Version(FLOORS[name])
    assert needed.specifier.contains(metadata.version(name), prereleases=True)
    assert pins()[canonicalize_name(name)] >= lowest[0]


def pins() -> dict[str, Version]:
    """Return the versions of the constraints file; each line must be a pin."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        requirement = Requirement(line)
        (only,) = requirement.specifier
        assert only.operator == "=="
        found[canonicalize_name(requirement.name)] = Version(only.version)
    return found


def needed(requirements: list[str], extra: str = "") -> Iterator[Requirement]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def test_everything_installed_for_us_is_pinned() -> None:
    """Follow the requirements of the project, its extras among them, through what is installed."""
    named = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    pinned = pins()
    waiting = [(r, extra) for r in needed(named) for extra in ("", *r.extras)]
    seen: set[tuple[str, str]] = set()
    loose, other = set(), {}
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen or name in ("cgnn", "pip", "setuptools", "wheel"):
            continue
        seen.add((name, extra))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        if name not in pinned:
            loose.add(name)
        elif pinned[name] != Version(Version(distribution.version).public):
            other[name] = (distribution.version, str(pinned[name]))
        waiting += [(r, deeper) for r in needed(distribution.requires or [], extra) for deeper in ("", *r.extras)]
    assert len(seen) > 50
    assert loose == set()
    assert other == {}


def test_the_pins_satisfy_the_project() -> None:
    pinned = pins()
    named = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    for requirement in needed(named):
        if requirement.name != "cgnn":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
