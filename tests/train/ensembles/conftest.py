"""Settings of small ensembles."""

import pytest


@pytest.fixture(scope="module")
def settings(settings):
    """Three epochs, as several networks are fitted."""
    return {**settings, "train": {**settings["train"], "epochs": 3}}
