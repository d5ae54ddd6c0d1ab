"""The picture of a probe."""

import numpy as np
import pytest

from cgnn.plots.probe import probe_responses
from cgnn.predict.probing import Response
from cgnn.predict.probing.probe import AMPLITUDES, Roughness


def response(neighbors, kind, slope, floor=0.0):
    changes = tuple(slope * amplitude + floor for amplitude in AMPLITUDES)
    rough = Roughness(2.0, 0.01, max(floor, 1e-12), 1.0 if floor else 1e-9)
    return Response("mp-1", neighbors, kind, "bulk_modulus", "log10(GPa)", changes, rough)


def test_a_panel_per_change_and_a_line_per_way_of_finding_neighbours():
    found = [response("nearest", kind, slope) for kind in ("moved", "strained") for slope in (0.1, 0.3)]
    found += [response("cgcnn", kind, 0.1, 0.02) for kind in ("moved", "strained")]
    figure = probe_responses(found, "bulk_modulus")
    assert figure.get_suptitle() == "bulk modulus"
    assert [panel.get_title("left") for panel in figure.axes] == ["moved", "strained"]
    for panel in figure.axes:
        names = [text.get_text() for text in panel.get_legend().get_texts()]
        assert names == ["nearest (0 of 2 jump)", "cgcnn (1 of 1 jump)"]
        smooth, jumping = panel.lines[:2]
        assert smooth.get_ydata() == pytest.approx(0.2 * np.array(AMPLITUDES), rel=1e-9)
        assert jumping.get_ydata() == pytest.approx(0.1 * np.array(AMPLITUDES) + 0.02, rel=1e-9)
        assert panel.get_xscale() == panel.get_yscale() == "log"
    assert figure.axes[0].get_ylabel() == "change (log10(GPa))"
