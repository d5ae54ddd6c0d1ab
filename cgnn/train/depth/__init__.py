"""Depth: what it buys, what it costs, and why."""

from cgnn.train.depth.study import Study, depth_study
from cgnn.train.depth.verdict import Verdict, cures, verdicts

__all__ = ["Study", "Verdict", "cures", "depth_study", "verdicts"]
