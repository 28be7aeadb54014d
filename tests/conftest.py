"""Fixtures that several rooms share."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Started in the background of a script, tests inherit an ignored Ctrl-C, which the doors under test would inherit, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A shared machine may stand still for longer than any deadline; examples are drawn anew at each run all the same.
settings.register_profile("zhizhi", deadline=None)
settings.load_profile("zhizhi")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct in the model cache; fetched once, skipped only without a network."""
    from gpt_core.hub.download import FetchError, fetch

    try:
        return fetch("smollm2-135m-instruct")
    except FetchError as error:
        pytest.skip(f"SmolLM2 is not in the model cache and could not be fetched: {error}")
