"""From very many crystals to a short list: funnels of stages, rankings that know errors, active learning."""

from cgnn.screen.funnel import Funnel
from cgnn.screen.quick import screen
from cgnn.screen.ranking import RANKINGS
from cgnn.screen.results import Screening
from cgnn.screen.settings import ScreenConfig, build_screen, load_screen

__all__ = ["RANKINGS", "Funnel", "ScreenConfig", "Screening", "build_screen", "load_screen", "screen"]
