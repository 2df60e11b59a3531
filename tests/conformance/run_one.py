"""Run one method on the planted task in a folder: a program for the tests to kill. Arguments: method, folder."""

from __future__ import annotations

import sys
import time

import torch
from planted import limit
from test_methods import found_by, quiet

from archgrad.tasks.classification import Classification

if __name__ == "__main__":
    torch.set_num_threads(1)
    name, folder, delay = sys.argv[1], sys.argv[2], float(sys.argv[3])
    loss = Classification.loss

    def slow(self: Classification, network: torch.nn.Module, batch: object) -> torch.Tensor:
        time.sleep(delay)  # so that there is time to be killed in
        return loss(self, network, batch)

    Classification.loss = slow
    found_by(name, quiet(name, epochs=6, folder=folder, checkpoint_seconds=0.0), limit=limit())
