import builtins

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle
from pymatgen.core import Lattice, Structure

from cgnn import plots
from cgnn.errors import DataError, MissingPackageError
from cgnn.plots.style import COLORS
from cgnn.targets import Target
from cgnn.train.metrics import Baseline

BULK = Target(name="bulk_modulus", unit="GPa", transform="log10")
ENERGY = Target(name="formation_energy", unit="eV/atom")
METAL = Target(name="is_metal", task="binary")


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_global_state():
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def moduli(random, number):
    truth = 10 ** random.normal(1.9, 0.3, number)
    return truth, truth * 10 ** random.normal(0, 0.05, number)


def texts(axes):
    return "\n".join(text.get_text() for text in axes.texts)


def test_parity_of_a_logarithmic_target(random):
    truth, prediction = moduli(random, 50)
    truth[0] = np.nan
    figure = plots.parity(truth, prediction, BULK, baseline=Baseline(90.0, 1.9))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlabel() == "known bulk modulus (GPa)"
    assert axes.get_ylabel() == "predicted bulk modulus (GPa)"
    mae = np.abs(prediction - truth)[1:].mean()
    assert f"n = 49\nMAE {mae:.3g} GPa, R²" in texts(axes)
    assert "log10(GPa)" in texts(axes)
    assert "training mean: MAE" in texts(axes)
    assert len(axes.collections[0].get_offsets()) == 49
    assert "100" in [tick.get_text() for tick in axes.get_xticklabels()]


def test_parity_is_linear_without_a_transform():
    figure = plots.parity([-1.0, 0.5], [-0.9, 0.4], ENERGY, title="Test part")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_title(loc="left")) == ("linear", "Test part")
    assert "MAE 0.1 eV/atom, R²" in texts(axes)


def test_parity_of_many_points_shows_density(random):
    truth, prediction = moduli(random, 3000)
    figure = plots.parity(truth, prediction, BULK)
    axes, bar = figure.axes
    assert isinstance(axes.collections[0], PolyCollection)
    assert axes.collections[0].get_array().sum() == 3000
    assert axes.get_xscale() == "log"
    assert bar.get_ylabel() == "crystals per cell"


def test_parity_by_parts(random):
    truth, prediction = moduli(random, 60)
    parts = ["train"] * 40 + ["val"] * 20
    (axes,) = plots.parity(truth, prediction, BULK, parts=parts).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [label.split("\n")[0] for label in labels] == ["train: n = 40", "val: n = 20"]
    drawn = [collection.get_facecolor()[0][:3] for collection in axes.collections]
    assert np.allclose(drawn, [to_rgb(color) for color in COLORS[:2]])


@pytest.mark.parametrize(("truth", "prediction"), [([], []), ([np.nan], [1.0]), ([5.0], [5.0]), ([1.0], [0.0])])
def test_parity_of_next_to_nothing(truth, prediction, tmp_path):
    plots.save(plots.parity(truth, prediction, BULK), tmp_path / "parity.png")


def test_parity_needs_numbers():
    with pytest.raises(ValueError, match="'is_metal' is a binary target"):
        plots.parity([0.0], [0.5], METAL)


def run_rows(number):
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / (1 + epoch),
            "val_score": 0.1 + abs(epoch - 7) / 10,
            "learning_rate": 1e-3,
            "seconds": 10.0,
            "val_bulk_modulus_mae": 30.0,
            "val_bulk_modulus_mae_log10": 0.2,
            "val_formation_energy_mae": 0.1,
            "val_is_metal_accuracy": 0.8,
        }
        for epoch in range(number)
    ]


def test_history_shows_each_target_in_its_unit():
    figure = plots.history(run_rows(20), [BULK, ENERGY, METAL])
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["scaled loss", "MAE (log10(GPa))", "MAE (eV/atom)", "accuracy", "learning rate"]
    assert figure.axes[-1].get_xlabel() == "epoch"
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_title(loc="left") == "Training: 20 epochs in 3 min"
    assert "best: epoch 7" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_history_of_rows_with_gaps(tmp_path):
    rows = run_rows(3)
    rows[1]["val_score"] = None
    del rows[2]["val_score"], rows[2]["val_bulk_modulus_mae_log10"]
    figure = plots.history(rows, [BULK, Target(name="never_scored")])
    assert len(figure.axes) == 3
    assert np.isnan(figure.axes[0].lines[1].get_ydata()[1:]).all()
    plots.save(figure, tmp_path / "history.png")


def test_learning_curve_has_the_baseline(tmp_path):
    figure = plots.learning_curve(
        [50, 100, 1000],
        {"bulk_modulus": [0.2, 0.1, 0.05]},
        baselines={"bulk_modulus": 0.3},
        spread={"bulk_modulus": [0.05, 0.02, 0.01]},
        unit="log10(GPa)",
    )
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training crystals", "MAE (log10(GPa))")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50", "100", "1,000"]
    assert list(axes.lines[1].get_ydata()) == [0.3, 0.3]
    low, high = axes.get_ylim()
    assert low < 0.04 < 0.3 < high
    plots.save(figure, tmp_path / "curve.svg")


@pytest.fixture
def rutile() -> Structure:
    cell = Lattice.tetragonal(4.59, 2.96)
    return Structure.from_spacegroup("P4_2/mnm", cell, ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]])


def balls(figure):
    """Places and outlines of the atoms: each ball is a stack of discs, only the lowest outlined."""
    discs = [patch for patch in figure.axes[0].patches if isinstance(patch, Circle)]
    return [disc for disc in discs if disc.get_linewidth() > 0]


def test_structure_repeats_atoms_on_faces(rutile, tmp_path):
    figure = plots.structure_graph(rutile)
    assert len(balls(figure)) == 9 + 6  # Ti: 8 corners and the centre; O: 2 inside, 2 on each of two c faces
    assert figure.axes[0].get_title(loc="left") == "TiO₂: a = 4.59 Å, b = 4.59 Å, c = 2.96 Å"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["Ti", "O"]
    assert "2 Å" in texts(figure.axes[0])
    plots.save(figure, tmp_path / "cell.png")


def test_structure_with_edges_shows_atoms_outside_the_cell(rutile):
    centers, neighbours, images, _ = rutile.get_neighbor_list(2.1)
    starts = rutile.cart_coords[centers]
    vectors = rutile.cart_coords[neighbours] + images @ rutile.lattice.matrix - starts
    figure = plots.structure_graph(rutile, starts, vectors)
    assert len(balls(figure)) > 15
    colors = {disc.get_facecolor()[:3] for disc in balls(figure)}
    assert len(colors) == 4  # two elements, in the cell and (paler) outside


def test_atoms_in_front_hide_what_is_behind(rutile):
    from cgnn.plots.crystal import _project

    figure = plots.structure_graph(rutile)
    _, heights = _project(rutile.cart_coords)
    order = [disc.get_zorder() for disc in balls(figure)]
    assert min(order) < heights.min() + 1
    assert max(order) > heights.max()


def test_neighbor_envelope_counts_shells():
    distances = np.array([2.86] * 8 + [3.3] * 6)

    def envelope(distance):
        return (1 - (distance / 3.575) ** 4) ** 2

    figure = plots.neighbor_envelope(
        distances, envelope(distances), kth=2.86, reach=3.575, envelope=envelope, title="Fe"
    )
    (axes,) = figure.axes
    assert axes.get_xlabel() == "distance (Å)"
    assert texts(axes).split("\n") == ["×8", "×6", "holds k", "reach"]  # noqa: RUF001
    assert axes.lines[0].get_xdata().max() <= 3.575


def test_neighbor_envelope_without_a_fading_cutoff():
    (axes,) = plots.neighbor_envelope([2.0, 2.5], [1.0, 1.0], reach=np.inf).axes
    assert axes.get_xlim()[1] == pytest.approx(1.04 * 2.5)


def test_gaussian_basis_marks_a_distance():
    centers = np.linspace(0, 8, 5)
    (axes,) = plots.gaussian_basis(centers, 2.0, distance=3.0).axes
    assert axes.get_xlabel() == "distance (Å)"
    assert len(axes.lines) == 5 + 1
    marked = axes.collections[0].get_offsets()
    assert np.allclose(marked[:, 1], np.exp(-(((3.0 - centers) / 2.0) ** 2)))
    assert "d = 3 Å" in texts(axes)


def test_save_writes_by_the_ending(tmp_path):
    figure = plots.gaussian_basis([0.0, 1.0], 1.0)
    plots.save(figure, tmp_path / "new" / "basis.png")
    plots.save(figure, tmp_path / "basis.pdf")
    assert (tmp_path / "new" / "basis.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "basis.pdf").read_bytes().startswith(b"%PDF")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["basis.png"]


def test_save_in_an_unknown_format(tmp_path):
    with pytest.raises(DataError, match=r"unknown picture format 'pgn'; did you mean 'png'\?"):
        plots.save(plots.gaussian_basis([0.0, 1.0], 1.0), tmp_path / "basis.pgn")


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for draw in (
        lambda: plots.parity([1.0], [1.0], BULK),
        lambda: plots.history([]),
        lambda: plots.gaussian_basis([0.0, 1.0], 1.0),
    ):
        with pytest.raises(MissingPackageError, match=r'pip install "cgnn\[plots\]"'):
            draw()
