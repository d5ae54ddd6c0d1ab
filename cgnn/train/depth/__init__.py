"""Depth: what it buys, what it costs, and why."""

from cgnn.train.depth.study import Study, depth_study, finished
from cgnn.train.depth.table import read_table
from cgnn.train.depth.verdict import Cure, Verdict, cures, verdicts

__all__ = ["Cure", "Study", "Verdict", "cures", "depth_study", "finished", "read_table", "verdicts"]
