"""Where work over many blocks of crystals is done: here, in several processes, or on a Ray cluster."""

from cgnn.data.engines.choice import AUTO, ENGINES, applied, run

__all__ = ["AUTO", "ENGINES", "applied", "run"]
