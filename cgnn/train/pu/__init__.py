"""Learning from positive crystals and from such of which nothing is known."""

from cgnn.train.pu.labels import LABELS
from cgnn.train.pu.run import PURun, pu_fit
from cgnn.train.pu.scores import Scores
from cgnn.train.pu.ways import PU_WAYS

__all__ = ["LABELS", "PU_WAYS", "PURun", "Scores", "pu_fit"]
