"""Screens: what passes and what does not, told for each crystal; the same bytes however often they were stopped."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from cgnn.data.items import Finished, Record, SetAside
from cgnn.data.records import from_structures
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.graph.crystal import Crystal
from cgnn.physics import derive, lognormal_samples
from cgnn.predict import Predictor
from cgnn.screen import Funnel, Screening, build_screen, screen, selection
from cgnn.screen.chunk import Chunk, Known, Reasons
from cgnn.screen.head import Head
from cgnn.screen.stages import STEPS

PREDICT = {"kind": "predict", "model": "elasticity"}
DERIVE = {"kind": "derive", "properties": ["youngs_modulus", "hardness_mo"], "draws": 60}
RANK = {"kind": "rank", "by": "lower_bound", "of": "youngs_modulus", "keep": 8}
STAGES = [
    PREDICT,
    DERIVE,
    {"kind": "filter", "rule": "bulk_modulus > 100", "name": "stiff"},
    {"kind": "unique", "by": "structure"},
    RANK,
    {"kind": "derive", "properties": ["debye_temperature", "conductivity_slack"], "draws": 60, "name": "Debye"},
    {"kind": "filter", "rule": "debye_temperature_p50 > 150", "name": "light"},
    {"kind": "rank", "by": "pareto", "of": ["youngs_modulus", "density"], "smallest": [False, True], "keep": 3},
]


def settings(*stages: dict[str, Any], **more: Any) -> Any:
    return build_screen({"stages": list(stages) or STAGES, **more})


@pytest.fixture(scope="module")
def blocks(embedded_documents: list[dict[str, Any]]) -> list[Finished]:
    """Six blocks: good crystals, one that can't be read, an id that comes again, a crystal in two cells."""
    structures = [Structure.from_dict(document["structure"]) for document in embedded_documents[::12][:40]]
    structures[30] = structures[3].make_supercell([2, 1, 1], in_place=False)
    records: list[Any] = list(from_structures(structures))
    records[7] = SetAside("crystal-7", "structure 7", "read", "bad", "it is broken")
    records[20] = Record("crystal-2", records[20].crystal, {}, "structure 20")
    return [Finished(records[first : first + 7]) for first in range(0, 40, 7)]


@pytest.fixture(scope="module")
def finished(blocks: list[Finished], tmp_path_factory: pytest.TempPathFactory) -> Screening:
    return Funnel(settings(), "cpu").run(blocks, tmp_path_factory.mktemp("screens") / "whole", engine="serial")


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What becomes of crystals


def test_every_crystal_has_one_fate(finished: Screening) -> None:
    rejected = pd.read_csv(finished.folder / "rejected.csv")
    table = finished.table
    assert len(table) + len(rejected) == 40
    assert table["rank"].tolist() == [1, 2, 3]
    for count, after in zip(finished.counts, [*finished.counts[1:], {"before": len(table)}], strict=True):
        assert count["after"] == after["before"]
        assert count["before"] - count["after"] == (rejected["stage"] == count["stage"]).sum()
    assert [count["kind"] for count in finished.counts] == ["read", *(stage["kind"] for stage in STAGES)]
    assert finished.counts[0] == {"stage": "read", "kind": "read", "before": 40, "after": 38}
    everything = pd.read_parquet(finished.folder / "candidates.parquet")
    assert everything["stage"].tolist().count("") == len(table)
    assert set(everything.loc[everything["stage"] == "", "material_id"]) == set(table["material_id"])


def test_why(finished: Screening) -> None:
    assert "dropped at stage 'read': it is broken" in finished.why("crystal-7")
    again = finished.why("crystal-2").splitlines()
    assert len(again) == 2
    assert "dropped at stage 'read': has the id of the record of structure 2" in "\n".join(again)
    best = finished.table["material_id"].iloc[0]
    assert finished.why(best) == f"{best}: finalist, number 1 of 3"
    fates = [finished.why(f"crystal-{row}") for row in range(40) if row != 20]
    assert any("'stiff': fails bulk_modulus > 100 (bulk_modulus " in fate for fate in fates)
    assert any("'rank': lower_bound of youngs_modulus" in fate and "the last of the 8 kept" in fate for fate in fates)
    with pytest.raises(DataError, match=r"no crystal 'crystal-411' was given.*did you mean"):
        finished.why("crystal-411")


def test_the_same_by_hand(finished: Screening, blocks: list[Finished]) -> None:
    """The numbers and the order of the stages up to the first ranking, computed without a funnel."""
    predictor = Predictor.load("elasticity", "cpu")
    records = [item for block in blocks for item in block.items() if isinstance(item, Record)]
    found = predictor.predict([record.structure for record in records], [r.source for r in records])
    bulk, shear = found["bulk_modulus"], found["shear_modulus"]
    r = predictor.confidence.correlation.matrix[0, 1]
    samples = lognormal_samples(bulk, shear, found["bulk_modulus_std"], found["shear_modulus_std"], r, 60)
    young = derive(bulk, shear, samples=samples, names=["youngs_modulus"])
    everything = pd.read_parquet(finished.folder / "candidates.parquet")
    everything = everything[everything["bulk_modulus"].notna()]
    for name, values in {"bulk_modulus": bulk, **young}.items():
        np.testing.assert_allclose(everything[name], values, rtol=1e-5)
    # the score of the first ranking is the bound of the band
    ranked = everything[everything["rank_score"].notna()]
    np.testing.assert_allclose(ranked["rank_score"], ranked["youngs_modulus_p16"], rtol=1e-12)
    passed = ranked[(ranked["bulk_modulus"] > 100) & ~ranked["material_id"].isin(["crystal-2", "crystal-20"])]
    kept = set(passed.sort_values("rank_score", ascending=False)["material_id"][:8])
    reached = set(everything.loc[everything["stage"].isin(["", "light", "rank 2"]), "material_id"])
    assert reached <= kept | {"crystal-30", "crystal-3", "crystal-2"}


def test_the_better_of_two_cells_stays(blocks: list[Finished], tmp_path: Path) -> None:
    some = [Finished([r for block in blocks for r in block.items() if r.material_id in ("crystal-3", "crystal-30")])]
    rank = {**RANK, "by": "value", "of": "youngs_modulus"}
    for number, by in enumerate(("structure", "composition", "matcher")):
        found = Funnel(settings(PREDICT, DERIVE, {"kind": "unique", "by": by}, rank), "cpu").run(some, tmp_path / by)
        assert len(found.table) == 1, number
        (other,) = {"crystal-3", "crystal-30"} - set(found.table["material_id"])
        assert f"the same as {found.table['material_id'].iloc[0]}, which ranks better" in found.why(other)


def test_metals_never_rank_as_hard(blocks: list[Finished], tmp_path: Path) -> None:
    found = Funnel(settings(PREDICT, DERIVE, {**RANK, "of": "hardness_mo"}), "cpu").run(blocks[:1], tmp_path / "s")
    assert len(found.table) == 0
    assert {"rank", "material_id", "hardness_mo"} <= set(found.table.columns)
    assert "not ranked: metal or alloy: hardness_mo is not valid for it" in found.why("crystal-0")
    assert found.counts[-1]["after"] == 0


def test_tables_have_units_and_structures(finished: Screening) -> None:
    table = finished.table
    units = table.attrs["units"]
    assert (units["youngs_modulus_p16"], units["density"], units["rank_score_1"]) == ("GPa", "g/cm³", "GPa")
    assert units == json.loads((finished.folder / "ranked.csv.units.json").read_text())
    schema = pq.read_schema(finished.folder / "ranked.parquet")
    assert schema.field("debye_temperature").metadata[b"unit"] == b"K"
    structures = finished.structures()
    assert list(structures) == table["material_id"].tolist()
    for structure, volume in zip(structures.values(), table["volume_per_atom"], strict=True):
        assert structure.volume / len(structure) == pytest.approx(volume, rel=1e-6)


def test_rejected_as_parquet(blocks: list[Finished], tmp_path: Path) -> None:
    rank = {"kind": "rank", "by": "value", "of": "density", "keep": 3}
    found = Funnel(settings(rank, rejected="parquet")).run(blocks[:2], tmp_path / "s")
    rejected = pd.read_parquet(found.folder / "rejected.parquet")
    assert len(rejected) == 11
    assert "it is broken" in found.why("crystal-7")
    all_of_them = Funnel(settings({**rank, "keep": 50}, rejected="parquet")).run(blocks[:1], tmp_path / "all")
    assert len(all_of_them.table) == 7
    with pytest.raises(DataError, match="no crystal 'x' was given"):
        all_of_them.why("x")


def test_a_block_in_parts_gives_the_same(blocks: list[Finished]) -> None:
    """A block whose crystals end their workers is done in parts, which are joined."""
    known, steps = Known.of_crystals({}), []
    for kind, stage in (("filter", {"rule": "num_elements == 2"}), ("rank", {"by": "value", "of": "density"})):
        step, known = STEPS[kind](settings({**RANK, "keep": 1}, {"kind": kind, **stage}).stages[1], known, "cpu")
        steps.append(step)
    head = Head(steps, known, {})
    whole, parts = head(blocks[1]), head.join([head(part) for part in blocks[1].split()])
    assert whole.columns.keys() == parts.columns.keys()
    for name, values in whole.columns.items():
        np.testing.assert_array_equal(values, parts.columns[name])
    for name in ("ids", "sources", "digests", "stages", "reasons", "flags"):
        assert getattr(whole, name) == getattr(parts, name)
    assert [crystal is None for crystal in whole.crystals] == [bool(stage) for stage in whole.stages]


# Stopped and resumed


class Stop(Exception):  # noqa: N818 - stands for a signal
    pass


@pytest.mark.parametrize("after", [0, 2, 5])
def test_a_stopped_screen_ends_with_the_same_bytes(
    after: int, finished: Screening, blocks: list[Finished], tmp_path: Path
) -> None:
    def stopping() -> Iterator[Finished]:
        yield from blocks[:after]
        raise Stop

    funnel = Funnel(settings(), "cpu")
    with pytest.raises(Stop, match=r"^$"):
        funnel.run(stopping(), tmp_path / "s", engine="serial")
    assert len(list((tmp_path / "s" / "work").glob("*.parquet"))) == after
    with pytest.raises(DataError, match="no finished screen"):
        Screening.load(tmp_path / "s")
    sizes: list[int] = []
    funnel.run(blocks, tmp_path / "s", resume=True, engine="serial", counter=sizes.append)
    assert written(tmp_path / "s") == written(finished.folder)
    assert sizes == [7, 7, 7, 7, 7, 5]
    before = written(tmp_path / "s")
    funnel.run(blocks, tmp_path / "s", resume=True)  # a finished one is left as it is
    assert written(tmp_path / "s") == before


def test_stopped_while_results_are_written(
    finished: Screening, blocks: list[Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*anything: Any) -> None:
        raise Stop

    funnel = Funnel(settings(), "cpu")
    with monkeypatch.context() as patch:
        patch.setattr("cgnn.screen.results._write_fates", stop)
        with pytest.raises(Stop, match=r"^$"):
            funnel.run(blocks, tmp_path / "s", engine="serial")
    funnel.run([], tmp_path / "s", resume=True)
    assert written(tmp_path / "s") == written(finished.folder)


def test_worker_processes_give_the_same(finished: Screening, blocks: list[Finished], tmp_path: Path) -> None:
    Funnel(settings(), "cpu").run(blocks, tmp_path / "s", engine="processes", workers=2)
    assert written(tmp_path / "s") == written(finished.folder)


def test_what_can_not_be_resumed(finished: Screening, blocks: list[Finished], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a screen already; resume it"):
        Funnel(settings(), "cpu").run(blocks, finished.folder)
    with pytest.raises(ConfigError, match="had other settings, models; choose"):
        Funnel(settings({"kind": "rank", "by": "value", "of": "density"})).run(blocks, finished.folder, resume=True)
    with pytest.raises(ConfigError, match="had other crystals; choose"):
        Funnel(settings(), "cpu").run(blocks, finished.folder, resume=True, source="others")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="holds no screen"):
        Funnel(settings(), "cpu").run(blocks, tmp_path)
    with pytest.raises(DataError, match="no crystals were given"):
        Funnel(settings(), "cpu").run([], tmp_path / "new")


# Bounded memory


class Stub:
    """A model that costs nothing: moduli from the volume."""

    name = "predict"

    def apply(self, chunk: Chunk) -> Reasons:
        volume = chunk.columns["volume_per_atom"]
        chunk.columns["bulk_modulus"] = 2000 / volume - 50
        chunk.columns["shear_modulus"] = 1000 / volume
        return {}


def stub(stage: Any, known: Known, device: str) -> tuple[Stub, Known]:
    return Stub(), known.having({"bulk_modulus": "GPa", "shear_modulus": "GPa"})


def cubes(number: int) -> Iterator[Record]:
    for row in range(number):
        side = 2.5 + 2 * ((row * 0.618034) % 1)
        yield Record(f"c-{row}", Crystal(np.array([6, 7]), np.zeros((2, 3)), side * np.eye(3)), {}, f"row {row}")


CHEAP = [PREDICT, {**DERIVE, "properties": ["youngs_modulus"]}, {**RANK, "by": "value", "keep": 5}]


def test_memory_does_not_grow_with_the_crystals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "predict", stub)
    monkeypatch.setattr(selection, "POOL", 64)
    Funnel(settings(*CHEAP)).run(cubes(300), tmp_path / "first")  # imports and caches
    peaks = []
    for number in (1_000, 5_000):
        tracemalloc.start()
        try:
            found = Funnel(settings(*CHEAP)).run(cubes(number), tmp_path / str(number), engine="serial")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert found.counts[0]["before"] == number
        assert len(found.table) == 5
    assert peaks[1] < peaks[0] + 3e5  # bytes; 4,000 crystals with their columns take 6 MB


def test_negative_moduli_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "predict", stub)
    found = Funnel(settings(*CHEAP)).run(cubes(50), tmp_path / "s")
    rejected = pd.read_csv(found.folder / "rejected.csv")
    soft = rejected[rejected["stage"] == "derive"]
    assert len(soft) > 0
    assert soft["reason"].str.fullmatch(r"bulk modulus: expected a number above 0, got -.* GPa \(bulk_modulus\)").all()


# Bad requests


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([PREDICT, {"kind": "filter", "rule": "bulk_modulos > 3"}, RANK], "'filter'.*did you mean 'bulk_modulus'"),
        ([PREDICT, {"kind": "filter", "rule": "bulk_modulus = 3"}, RANK], "'filter'.*no expression"),
        ([{**PREDICT, "model": "formation_energy"}, DERIVE, RANK], "unknown modulus 'bulk_modulus'"),
        ([PREDICT, {**DERIVE, "properties": ["hardnes_mo"]}, RANK], "did you mean 'hardness_mo'"),
        ([PREDICT, {**PREDICT, "name": "again"}, RANK], "column 'bulk_modulus' is there already"),
        ([PREDICT, {**RANK, "by": "lowest"}], "unknown ranking 'lowest'"),
        ([PREDICT, {**RANK, "of": "youngs_modulus"}], "unknown column 'youngs_modulus'"),
        ([{**RANK, "of": "density"}], "needs its errors"),
        ([PREDICT, {**RANK, "by": "probability", "of": "bulk_modulus"}], "needs a threshold"),
        ([PREDICT, {**RANK, "of": "bulk_modulus", "threshold": 3.0}], "has no threshold"),
        ([PREDICT, {**RANK, "of": ["bulk_modulus", "density"]}], "ranks by one column"),
        ([PREDICT, {**RANK, "by": "pareto", "of": "bulk_modulus"}], "two columns or more"),
        (
            [{"kind": "unique", "by": "name"}, {**RANK, "by": "value", "of": "density"}],
            "unknown way to tell duplicates",
        ),
        ([PREDICT], "none ranks"),
        ([{"kind": "unique"}, PREDICT, RANK], "right before it"),
        ([{**PREDICT, "name": "rank"}, RANK], "the name 'rank' is taken"),
        ([{**PREDICT, "name": "read"}, RANK], "the name 'read' is taken"),
        ([{"kind": "filtr"}, RANK], "filtr"),
        ([{"kind": "filter", "ruel": "metal"}, RANK], "unknown key; did you mean 'rule'"),
        ([{**RANK, "keep": 0}], "stages.0.rank.keep"),
        ([{**RANK, "by": "pareto", "of": ["density", "num_atoms"], "smallest": [True]}], "expected 2 entries"),
    ],
)
def test_refused(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Funnel(settings(*stages), "cpu")


def test_no_such_model() -> None:
    with pytest.raises(CheckpointError, match="elasticty"):
        Funnel(settings({**PREDICT, "model": "elasticty"}, RANK), "cpu")


def test_columns_of_the_input(tmp_path: Path) -> None:
    values = [{"hull": 0.01}, {"hull": 0.2}, {"hull": "stable"}, {}]
    records = [Record(r.material_id, r.crystal, v, r.source) for r, v in zip(cubes(4), values, strict=True)]  # type: ignore[arg-type]
    stages = [{"kind": "filter", "rule": "energy < 0.1"}, {"kind": "rank", "by": "value", "of": "energy"}]
    found = Funnel(settings(*stages, columns={"energy": "hull"})).run(records, tmp_path / "s")
    assert found.table["material_id"].tolist() == ["c-0"]
    assert "stage 'read': column 'hull': expected a number, got 'stable'" in found.why("c-2")
    assert "can't be told: energy < 0.1 (energy unknown)" in found.why("c-3")


# In one call


def test_screen_in_one_call(blocks: list[Finished], tmp_path: Path) -> None:
    items = [item for block in blocks[:2] for item in block.items() if isinstance(item, Record)]
    structures = [item.structure for item in items]
    table = screen(structures, rules="bulk_modulus > 50", top=4, of="youngs_modulus", properties=["youngs_modulus"])
    assert len(table) == 4
    assert (np.diff(table["youngs_modulus_p50"]) <= 0).all()
    assert table.attrs["units"]["youngs_modulus"] == "GPa"
    assert table.attrs["counts"][-1]["after"] == 4
    diamond = Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567), ["C"], [[0, 0, 0]])
    table = screen([*structures, diamond], by="probability", threshold=20.0, output=tmp_path / "kept")
    assert table["formula"].tolist() == ["C"]  # all others are metals
    assert table["rank_score"].iloc[0] > 0.9
    assert "not ranked: metal" in Screening.load(tmp_path / "kept").why("crystal-0")
    with pytest.raises(ConfigError, match="unknown column 'hardness'"):
        screen(structures, rules="hardness > 3")


def test_a_screen_may_end_with_nothing(blocks: list[Finished], tmp_path: Path) -> None:
    nothing = {"kind": "filter", "rule": "num_atoms > 1000000", "name": "nothing"}
    stages = [PREDICT, DERIVE, nothing, *STAGES[3:]]
    found = Funnel(settings(*stages), "cpu").run(blocks, tmp_path / "empty", engine="serial")
    assert len(found.table) == 0
    left = {count["stage"]: count["after"] for count in found.counts}
    assert left["predict"] > 0
    assert {left["nothing"], left["Debye"], left["light"], found.counts[-1]["after"]} == {0}
