"""One torch thread for every test: more threads on loaded cores are slower, and change no result."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for the networks in tests/families

settings.register_profile("archgrad", derandomize=True, deadline=None, database=None, print_blob=False)
settings.load_profile("archgrad")


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
