"""From a stored model and crystals to predictions in physical units."""

from cgnn.predict.predictions import Evaluation, Predictions
from cgnn.predict.predictor import Predictor

__all__ = ["Evaluation", "Predictions", "Predictor"]
