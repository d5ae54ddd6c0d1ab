"""Fitting networks, and everything built around it."""

from cgnn.train.curve import learning_curve
from cgnn.train.cv import cross_validate
from cgnn.train.ensembles.ensemble import Ensemble, train_ensemble
from cgnn.train.loop import Fitted, fit
from cgnn.train.run import Run, train

__all__ = ["Ensemble", "Fitted", "Run", "cross_validate", "fit", "learning_curve", "train", "train_ensemble"]
