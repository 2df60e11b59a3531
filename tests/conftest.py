"""One torch thread for every test, since more are slower on loaded cores and change no result; Ctrl-C is heard."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for the networks in tests/families
sys.path.insert(1, str(Path(__file__).parent.parent / "benchmarks"))  # for tests/benchmarks

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import it themselves

# A program that is started in the background ignores Ctrl-C, and so would all that it starts; tests interrupt some.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("archgrad", derandomize=True, deadline=None, database=None, print_blob=False)
settings.load_profile("archgrad")


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
