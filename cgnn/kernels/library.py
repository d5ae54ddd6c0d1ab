"""Finding the compiled libraries beside this file."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


@cache
def load(name: str) -> ctypes.CDLL | None:
    """Return a compiled library, such as ``gate``, or None where it was not built.

    Every caller has a slower way that gives the same numbers. ``CGNN_KERNELS=off`` leaves the libraries
    unused, to compare the two.
    """
    if os.environ.get("CGNN_KERNELS", "") == "off":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_{name}{suffix}")
        if path.is_file():
            try:
                return ctypes.CDLL(str(path))
            except OSError:
                return None  # built for another machine
    return None
