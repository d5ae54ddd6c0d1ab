"""Pictures of a screening: Ashby diagram and its page, funnel, periodic table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cgnn.errors import ConfigError, DataError
from cgnn.plots import ashby_page, save
from cgnn.plots.ashby import KNOWN, NAMED, Materials, ashby
from cgnn.plots.ashby_page import write_page
from cgnn.plots.crystal_page import write_crystal_pages
from cgnn.plots.screening import PLACES, funnel, periodic_table


@pytest.fixture(autouse=True)
def no_global_state():
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def materials(rng, number, **changed):
    hardness = rng.lognormal(2, 0.8, number)
    toughness = 0.2 * hardness * rng.lognormal(0, 0.2, number)
    given = {
        "ids": [f"mp-{row}" for row in range(number)],
        "hardness": hardness,
        "toughness": toughness,
        "formulas": [f"X{row}" for row in range(number)],
        "hardness_band": [0.8 * hardness, 1.3 * hardness],
        "toughness_band": [0.9 * toughness, 1.2 * toughness],
    }
    return Materials(**{**given, **changed})


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_few_crystals_are_points_with_front_and_known_materials(rng, tmp_path):
    few = materials(rng, 60)
    few.hardness[3] = np.nan
    few.toughness[4] = 0
    figure = ashby(few, short=[0, 3, 7])
    axes, near = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_title(loc="left") == "58 crystals"
    assert len(axes.lines[0].get_xdata()) == 58
    assert set(texts(axes)) == set(KNOWN)
    assert {"1  X₀", "2  X₇"} <= set(texts(near))  # row 3 has no hardness
    assert near.get_title(loc="left") == "short list, all 2 named"
    named = {line.get_label(): line for line in axes.lines}
    assert len(named["short list"].get_xdata()) == 2
    front = np.array(named["Pareto front"].get_data()).T
    assert all((np.diff(front[:, 0]) < 0) & (np.diff(front[:, 1]) > 0))
    x, y = named["equal wear resistance"].get_data()
    assert np.log(y[1] / y[0]) / np.log(x[1] / x[0]) == pytest.approx(-1.5)
    (bars,) = near.containers
    assert len(bars[2]) == 2  # both directions
    ends = bars[2][1].get_segments()[0][:, 1]
    assert ends == pytest.approx([0.8 * few.hardness[0], 1.3 * few.hardness[0]])
    assert near.get_ylim()[0] < ends[0] < ends[1] < near.get_ylim()[1]
    save(figure, tmp_path / "few.png")


def test_names_of_a_short_list_do_not_lie_on_each_other(rng):
    same = materials(rng, 40, hardness=np.full(40, 30.0), toughness=np.full(40, 3.0))
    near = ashby(same, short=range(40)).axes[1]
    names = [text for text in near.texts if "  X" in text.get_text()]
    assert len(names) == NAMED
    heights = np.sort([name.xyann[1] for name in names])
    assert np.diff(heights).min() > 0.04
    assert (heights[0] > 0, heights[-1]) == (True, pytest.approx(1.0))
    assert near.get_title(loc="left") == f"short list, the first {NAMED} of 40 named"


def test_known_materials_are_where_the_relations_put_them(rng):
    assert materials(rng, 3).known()["diamond"] == pytest.approx((6.402, 101.62), rel=1e-4)
    by_chen = materials(rng, 3, relations=("toughness_niu", "hardness_chen")).known()
    assert by_chen["SiC"][1] == pytest.approx(32.89, rel=1e-4)


def test_many_crystals_are_density(rng, tmp_path):
    figure = ashby(materials(rng, 2500), title="all")
    axes, bar = figure.axes
    assert axes.get_title(loc="left") == "all"
    (cells,) = axes.collections
    assert 0.9 * 2500 <= cells.get_array().sum() <= 2500  # the softest may lie outside
    assert bar.get_ylabel() == "crystals per cell"
    save(figure, tmp_path / "many.pdf")


def test_a_page_holds_everything_itself(rng, tmp_path):
    evil = '</script><script>alert("x")</script>'
    some = materials(rng, 50, ids=[evil, *(f"mp-{row}" for row in range(1, 50))])
    write_page(tmp_path / "ashby.html", some, short=[1, 2], link="crystals/{id}.html")
    page = (tmp_path / "ashby.html").read_text()
    assert not re.findall(r"<(?:script|link)[^>]* (?:src|href)=", page)
    assert evil not in page
    assert '"crystals/{id}.html".split("{id}").join(encodeURIComponent(row[0]))' in page
    write_page(tmp_path / "some.html", some, short=[2], links={2: "finalists/002.html"})
    assert page_data(tmp_path / "some.html")[2]["customdata"] == [["mp-2", "X2", "finalists/002.html"]]
    assert "window.open(place" in (tmp_path / "some.html").read_text()
    assert "mp-49" in page
    assert len(page) > 3_000_000  # with plotly's own code
    write_page(tmp_path / "plain.html", materials(rng, 5, formulas=(), hardness_band=None, toughness_band=None))
    assert "window.open(" not in (tmp_path / "plain.html").read_text().split("Plotly.newPlot(")[-1]


def page_data(path):
    """Return the traces of a page, which are JSON."""
    drawn = path.read_text().rpartition("Plotly.newPlot(")[2]
    start = drawn.index("[{")
    return json.JSONDecoder().raw_decode(drawn[start:])[0]


def test_a_page_tells_more_and_is_thinned_where_there_is_too_much(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(ashby_page, "PAGE_POINTS", 20)
    details = {"K (GPa)": np.r_[np.nan, np.arange(59.0)]}
    many = materials(rng, 60, details=details)
    write_page(tmp_path / "a.html", many, short=[7])
    crystals, front, short, *_ = page_data(tmp_path / "a.html")
    ids = [row[0] for row in crystals["customdata"]]
    assert 20 <= len(ids) <= 20 + len(front["customdata"]) + 1
    assert {"mp-7", *(row[0] for row in front["customdata"])} <= set(ids)
    assert short["customdata"] == [["mp-7", "X7", "", 6.0]]
    assert dict(zip(ids, crystals["customdata"], strict=True))["mp-0"][3] is None
    assert "K (GPa) %{customdata[3]:.3g}" in crystals["hovertemplate"]
    assert " of 60 crystals" in (tmp_path / "a.html").read_text()


def test_a_crystal_can_be_turned(tmp_path):
    silicon = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.431), ["Si"], [[0, 0, 0]])
    write_crystal_pages(tmp_path, {"001-Si": (silicon, "1  Si (<b>)\nhard")})
    cell, bonds, atoms = page_data(tmp_path / "001-Si.html")
    assert len(cell["x"]["bdata"] if isinstance(cell["x"], dict) else cell["x"]) >= 36
    assert atoms["name"] == "Si"
    page = (tmp_path / "001-Si.html").read_text()
    assert '<script charset="utf-8" src="plotly.min.js"' in page or 'src="plotly.min.js"' in page
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000
    assert "(<b>)" not in page.partition("Plotly.newPlot")[2]
    assert bonds["line"]["width"] == 5


def test_bonds_of_silicon():
    from cgnn.plots.crystal import visible_atoms
    from cgnn.plots.crystal_page import _bonds

    silicon = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.431), ["Si"], [[0, 0, 0]])
    points, _ = visible_atoms(silicon, np.zeros((0, 3)))
    starts, ends = _bonds(points, ["Si"] * len(points))
    assert len(points) == 18  # corners, faces, and four inside
    assert len(starts) == 16  # each of the four inside has four
    assert np.linalg.norm(starts - ends, axis=1) == pytest.approx(5.431 * 3**0.5 / 4)


def test_a_link_stays_a_text(rng, tmp_path):
    write_page(tmp_path / "a.html", materials(rng, 3), link='"); alert(1); ("</script>{id}')
    last = (tmp_path / "a.html").read_text().rpartition("row && (row[2] || ")[2]
    script = last.partition(".split(")[0]
    assert json.loads(script) == '"); alert(1); ("</script>{id}'
    assert "</script>" not in script


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": ["a"]}, r"expected columns of equal length, got \[1, 5\]"),
        ({"details": {"K": np.ones(4)}}, r"expected columns of equal length, got \[4, 5\]"),
        ({"hardness": np.zeros(5)}, "no crystal with a hardness and a toughness above 0"),
    ],
)
def test_nothing_to_show(rng, changed, message):
    with pytest.raises(DataError, match=message):
        ashby(materials(rng, 5, **changed))


def test_what_is_no_diagram(rng, tmp_path):
    with pytest.raises(ConfigError, match="unknown material index 'wear'"):
        ashby(materials(rng, 5), index="wear")
    with pytest.raises(DataError, match="index: no values of youngs_modulus, density"):
        ashby(materials(rng, 5), index="stiff_beam")
    with pytest.raises(DataError, match=r"a\.png: a page ends in \.html"):
        write_page(tmp_path / "a.png", materials(rng, 5))
    assert not list(Path(tmp_path).iterdir())


def test_funnel_has_counts_and_shares(tmp_path):
    figure = funnel([("read", 200_000), ("hard", 100), ("kept", 0)])
    (axes,) = figure.axes
    assert texts(axes) == ["200,000", "100  (0.1%)", "0  (0.0%)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["read", "hard", "kept"]
    save(figure, tmp_path / "funnel.svg")
    for stages in ([], [("a", 1), ("b", 2)], [("a", -1)]):
        with pytest.raises(DataError, match="stages that leave fewer and fewer crystals"):
            funnel(stages)


def test_periodic_table_has_values_and_counts(tmp_path):
    figure = periodic_table({"B": 19.1, "C": 14.0, "U": np.nan}, "mean hardness", "GPa", counts={"B": 1234})
    axes, bar = figure.axes
    assert {"19.1", "14", "1,234", "He"} <= set(texts(axes))
    assert bar.get_ylabel() == "mean hardness (GPa)"
    assert len(axes.patches) == len(PLACES) == 103
    assert (PLACES["H"], PLACES["He"], PLACES["Au"], PLACES["U"]) == ((0, 0), (17, 0), (10, 5), (5, 9))
    save(figure, tmp_path / "table.png")
    save(periodic_table({"Fe": 1.0}, "one"), tmp_path / "one.png")
    with pytest.raises(DataError, match="unknown element 'Xx'"):
        periodic_table({"Xx": 1.0}, "x")
    with pytest.raises(DataError, match="no values"):
        periodic_table({"Fe": np.nan}, "x")
