"""One torch thread for every test: more threads on loaded cores are slower, and change no result."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
