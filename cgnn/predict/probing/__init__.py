"""How predictions answer to small changes of a crystal."""

from cgnn.predict.probing.paths import PERTURBATIONS
from cgnn.predict.probing.probe import Probed, Response, Values, probe, same_weights
from cgnn.predict.probing.verdict import Smoothness, verdicts

__all__ = ["PERTURBATIONS", "Probed", "Response", "Smoothness", "Values", "probe", "same_weights", "verdicts"]
