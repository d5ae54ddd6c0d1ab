"""Loops compiled from C, where a compiler was at hand when cgnn was installed."""

from cgnn.kernels.library import load

__all__ = ["load"]
