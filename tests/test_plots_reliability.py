import matplotlib as mpl
import numpy as np
import pytest

from cgnn import plots
from cgnn.targets import Target
from cgnn.train.trust.calibration import Calibration

BULK = Target(name="bulk_modulus", unit="GPa", transform="log10")
ENERGY = Target(name="formation_energy", unit="eV/atom")


@pytest.fixture(autouse=True)
def no_global_state():
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def crystals(rng, number, target=BULK, is_constant=False):
    within = np.full(number, 0.1) if is_constant else rng.lognormal(-3, 0.7, number)
    value = rng.normal(1.9, 0.3, number)
    learned = value + within * rng.normal(size=number)
    truth = 10**learned if target is BULK else learned
    calibration = Calibration.fit(target, value, np.zeros(number), within, truth)
    return truth, value, calibration.sigma(np.zeros(number), within), calibration


def texts(axes):
    return "\n".join(text.get_text() for text in axes.texts)


def test_three_panels_in_the_learned_unit(rng, tmp_path):
    truth, value, sigma, calibration = crystals(rng, 400)
    truth[0] = np.nan
    figure = plots.reliability(truth, value, sigma, BULK, calibration)
    coverage, spread, retention = figure.axes
    assert figure.get_suptitle() == "bulk modulus (n = 399)"
    assert "90% interval: 90.2%" in texts(coverage)  # 361 of 401, one of them no longer known
    line = coverage.lines[-1]
    assert line.get_ydata() == pytest.approx(line.get_xdata(), abs=0.01)  # of the crystals it was calibrated on
    assert spread.get_xlabel() == "stated standard deviation (log10(GPa))"
    assert (spread.get_xscale(), spread.get_xlim()) == ("log", spread.get_ylim())
    assert "10 bins" in texts(spread)
    assert retention.get_ylabel() == "MAE of the rest (log10(GPa))"
    assert len(retention.lines[1].get_xdata()) == 390  # down to ten crystals
    plots.save(figure, tmp_path / "reliability.png")


def test_one_width_for_all(rng, tmp_path):
    truth, value, sigma, calibration = crystals(rng, 100, ENERGY, is_constant=True)
    figure = plots.reliability(truth, value, sigma, ENERGY, calibration, title="Test part")
    assert figure.get_suptitle() == "Test part (n = 100)"
    assert "1 bin\n" in texts(figure.axes[1])
    assert figure.axes[1].get_xlabel() == "stated standard deviation (eV/atom)"
    assert texts(figure.axes[2]) == "gain 0.00"
    plots.save(figure, tmp_path / "reliability.svg")


@pytest.mark.parametrize("number", [1, 2, 12])
def test_next_to_nothing(rng, number, tmp_path):
    calibration = crystals(rng, 50)[3]
    truth, value, sigma = np.full(number, 100.0), np.full(number, 2.0), np.full(number, 0.1)
    plots.save(plots.reliability(truth, value, sigma, BULK, calibration), tmp_path / "reliability.png")


def test_no_known_values(rng):
    calibration = crystals(rng, 50)[3]
    with pytest.raises(ValueError, match="reliability of 'bulk_modulus': no known values"):
        plots.reliability([np.nan], [2.0], [0.1], BULK, calibration)
