"""Pictures: numbers in, a matplotlib `Figure` out; `save` writes it.

Matplotlib is imported inside the functions; none touches pyplot or another lasting state, so all work without a
display.
"""

from cgnn.plots.crystal import gaussian_basis, neighbor_envelope, structure_graph
from cgnn.plots.reliability import reliability
from cgnn.plots.scores import history, learning_curve, parity
from cgnn.plots.style import save

__all__ = [
    "gaussian_basis",
    "history",
    "learning_curve",
    "neighbor_envelope",
    "parity",
    "reliability",
    "save",
    "structure_graph",
]
