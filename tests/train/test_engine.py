"""What a fit changes of the process, and puts back."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import pytest
import torch

from cgnn.train.engine import kept_memory

resource = pytest.importorskip("resource", reason="pages are counted on Unix")
MEGABYTES = 64
PAGES = MEGABYTES * 2**20 // resource.getpagesize()


def _is_glibc() -> bool:
    return hasattr(ctypes.CDLL(None), "malloc_trim")


def _pages_taken(rounds: int) -> int:
    """Return how many pages the process gets from the system while a large tensor comes and goes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(MEGABYTES * 2**18)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def _resident() -> int:
    """Return the pages that the process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


@pytest.mark.skipif(not _is_glibc(), reason="other C libraries are left alone")
def test_large_tensors_come_and_go_within_the_same_pages():
    rounds = 10
    outside = _pages_taken(rounds)
    with kept_memory():
        _pages_taken(rounds)
        within = _pages_taken(rounds)
    assert within < outside / 4  # not none: small blocks that settle in the gap make the heap grow now and then


@pytest.mark.parametrize("error", [None, ValueError("in the fit")])
@pytest.mark.skipif(not _is_glibc(), reason="other C libraries are left alone")
def test_what_is_free_goes_back_at_the_end(error: Exception | None):
    with suppress(ValueError), kept_memory():
        torch.ones(MEGABYTES * 2**18)
        held = _resident()
        if error:
            raise error
    assert _resident() < held - PAGES / 2
