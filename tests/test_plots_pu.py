import builtins

import matplotlib as mpl
import numpy as np
import pytest

from cgnn import plots
from cgnn.errors import DataError, MissingPackageError
from cgnn.plots import pu
from cgnn.train.pu.evaluation import by_element, later, recall_at, roc_auc


@pytest.fixture(autouse=True)
def no_global_state():
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


@pytest.fixture
def sides(rng):
    """Scores of held-out positives and of unlabelled crystals; one crystal has no votes."""
    return np.append(rng.beta(5, 2, 200), np.nan), rng.beta(2, 4, 400)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_histogram_gives_both_sides_one(sides, tmp_path):
    figure = pu.score_histogram(*sides, threshold=0.6)
    (axes,) = figure.axes
    flagged = [np.nanmean(np.where(np.isnan(side), np.nan, side >= 0.6)) for side in sides]
    assert legend(axes) == [
        f"held-out positives (200): {flagged[0]:.1%} flagged",
        f"unlabelled, out of bag (400): {flagged[1]:.1%} flagged",
    ]
    for outline in axes.patches:
        points = outline.get_xy()
        height = points[points[:, 0] > 0.0125][:, 1]
        assert 0 < height.max() < 1
    assert sum(np.histogram(sides[1], np.linspace(0, 1, 41))[0]) == 400
    plots.save(figure, tmp_path / "scores.png")


def test_recall_against_share(sides, tmp_path):
    one_for_all = (np.full(20, 0.5), np.full(30, 0.5))
    figure = pu.recall_against_share({"networks": sides, "constant": one_for_all}, marks={"Jang 2020": (0.208, 0.874)})
    (axes,) = figure.axes
    assert legend(axes) == ["a guess, or a constant", "networks", "constant", "Jang 2020: 87.4% at 20.8%"]
    shares, recall = axes.lines[1].get_data()
    assert recall == pytest.approx(recall_at(*sides, shares), abs=1e-12)
    assert axes.lines[2].get_ydata() == pytest.approx(axes.lines[2].get_xdata(), abs=1e-12)
    band = axes.collections[0].get_paths()[0].vertices
    there = np.argmin(np.abs(recall - 0.5))
    tops = band[np.isclose(band[:, 0], shares[there]), 1]
    noise = np.sqrt(recall[there] * (1 - recall[there]) / 200)
    assert tops.max() - recall[there] == pytest.approx(2 * noise, abs=1e-9)
    plots.save(figure, tmp_path / "recall.png")


def test_progress_over_bags(tmp_path):
    figure = pu.progress([1, 2, 3], [0.7, 0.8, 0.82], [np.nan, 0.02, 0.01], baselines={"trees": 0.843})
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata().tolist() == [0.7, 0.8, 0.82]
    assert axes.lines[1].get_ydata()[0] == 0.843
    assert legend(axes) == ["trees"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bags", "recall where 20.8 % are flagged")
    plots.save(figure, tmp_path / "progress.svg")


def test_roc_says_what_is_out_of_reach(sides, tmp_path):
    figure = pu.roc_curve({"networks": sides}, alpha=0.2)
    (axes,) = figure.axes
    area, error = roc_auc(*sides)
    assert f"networks: area {area:.3f} ± {error:.3f}" in legend(axes)
    assert "out of reach with 20% positives:\narea 0.900 at most" in legend(axes)
    flagged, recall = axes.lines[1].get_data()
    assert np.trapezoid(recall, flagged) == pytest.approx(area, abs=1e-12)
    assert "some of them are positive" in axes.get_xlabel()
    plots.save(figure, tmp_path / "roc.png")
    assert len(pu.roc_curve({"networks": sides}).axes[0].collections) == 0


def test_enrichment_of_later_positives(rng, tmp_path):
    is_later = rng.random(500) < 0.2
    scores = np.clip(rng.normal(0.4 + 0.3 * is_later, 0.2), 0, 1)
    figure = pu.enrichment({"networks": scores, "a constant": np.full(500, 0.5)}, is_later)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    k, values = axes.lines[0].get_data()
    assert (k[0], k[-1]) == (10, 500)
    assert values[0] == later(scores, is_later, (10,))[0]["enrichment"] > 2
    assert values[-1] == pytest.approx(1, abs=1e-12)
    assert axes.lines[1].get_ydata() == pytest.approx(np.ones(len(k)), abs=1e-12)
    plots.save(figure, tmp_path / "later.png")


def test_recall_by_element_starts_with_the_worst(rng, tmp_path):
    elements = [("O", "Na")] * 30 + [("O", "K")] * 20 + [("Xe",)] * 3
    scores = np.concatenate([np.full(30, 0.9), np.full(20, 0.2), np.full(3, 0.9)])
    rows = by_element(elements, scores, [("Na",), ("O",)], [0.8, 0.1])
    figure = pu.element_recall(rows)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["K", "O", "Na"]
    assert [bar.get_height() for bar in axes.patches] == [0, 0.6, 1]
    assert axes.get_xlabel() == "element (at least 10 held-out positives, 1 more not shown)"
    markers = next(line for line in axes.lines if line.get_label() == "unlabelled")
    assert np.isnan(markers.get_ydata()[0])  # no unlabelled crystal with K
    assert markers.get_ydata()[1:].tolist() == [0, 1]
    plots.save(figure, tmp_path / "elements.png")
    assert len(pu.element_recall(rows, most=1).axes[0].patches) == 1
    with pytest.raises(ValueError, match="recall by element: none has 100 held-out positives"):
        pu.element_recall(rows, least=100)


def test_pictures_of_next_to_nothing(tmp_path):
    one = ([0.5], [0.5])
    plots.save(pu.score_histogram(*one), tmp_path / "a.png")
    plots.save(pu.recall_against_share({"one": one}), tmp_path / "b.png")
    plots.save(pu.roc_curve({"one": one}, alpha=0.1), tmp_path / "c.png")
    plots.save(pu.progress([1], [0.5], [np.nan]), tmp_path / "d.png")
    plots.save(pu.enrichment({"one": [0.5, 0.6]}, [True, False]), tmp_path / "e.png")
    with pytest.raises(DataError, match="unlabelled crystals: none has a score"):
        pu.score_histogram([0.5], [])


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for draw in (lambda: pu.score_histogram([0.5], [0.5]), lambda: pu.progress([1], [0.5], [0.1])):
        with pytest.raises(MissingPackageError, match=r'pip install "cgnn\[plots\]"'):
            draw()
