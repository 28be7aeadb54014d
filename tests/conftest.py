"""Fixtures that the tests of several packages share."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A background job of a script starts with SIGINT ignored, and the commands under test would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No deadline per example: a shared machine may stall for longer. Examples are still drawn at random in each run.
settings.register_profile("zhizhi", deadline=None)
settings.load_profile("zhizhi")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct in the model cache; skips the test if the download fails."""
    from gpt_core.hub.download import FetchError, fetch

    try:
        return fetch("smollm2-135m-instruct")
    except FetchError as error:
        pytest.skip(f"SmolLM2 is not in the model cache and could not be fetched: {error}")
