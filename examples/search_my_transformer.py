"""Search a network of your own: put choices where it may vary, and let a method decide them under a limit.

    python examples/search_my_transformer.py --fraction 0.5 --out runs/transformer

Here each block of a small transformer is attention, a convolution over the tokens, or an MLP, and may read the block
before it or the one before that. The data are digits, a row of the image a token. About a minute on one CPU core.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch
from torch import Tensor, nn

import archgrad as ag

WIDTH, TOKENS = 32, 8


class Attention(nn.Module):
    """Self-attention of four heads: [B, T, C] to [B, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """A depthwise convolution over the tokens, then a mixture of the channels: [B, T, C] to [B, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.across = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.across(self.along(x.transpose(1, 2)).transpose(1, 2))


class Block(nn.Module):
    """Normalize, apply what the choice says, add."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        kinds = {"attention": Attention(), "convolution": Convolution(), "mlp": mlp}
        self.mixer = ag.OpChoice(kinds, name=f"block{index}.mixer")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class MyTransformer(nn.Module):
    """Images [B, 1, 8, 8] to logits [B, 10]."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.position = nn.Parameter(torch.zeros(TOKENS, WIDTH))
        self.blocks = nn.ModuleList(Block(i) for i in range(blocks))
        self.sources = nn.ModuleList(ag.InputChoice(2, name=f"block{i}.source") for i in range(1, blocks))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        before = self.embed(x.squeeze(1)) + self.position
        last = self.blocks[0](before)
        for block, source in zip(list(self.blocks)[1:], self.sources, strict=True):
            before, last = last, block(source([last, before]))
        return self.head(last.mean(1))


def main() -> None:
    """Search, train what was found, report, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/transformer"))
    parser.add_argument("--fraction", type=float, default=0.5, help="of the most expensive network's MACs")
    parser.add_argument("--epochs", type=int, default=30, help="half of them search, half train what was found")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, nothing kept, in seconds")
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    task = ag.Classification(ag.digits(), batch_size=64)
    x = task.example  # [1, 1, 8, 8]
    folder, steps = (None, 8) if given.smoke else (given.out, None)
    run = ag.Run(epochs=given.epochs, steps=steps, seed=given.seed, folder=folder)
    limit = ag.macs(x).at_most(fraction=given.fraction)
    recipe = ag.Recipe(optimizer_factory=functools.partial(ag.adamw, learning_rate=3e-3))
    found = ag.unas(MyTransformer(), task, run, limit=limit, search_recipe=recipe, recipe=recipe)
    print(found.report())

    if folder is None:
        return
    written = ag.export_onnx(found.network, x, given.out / "found.onnx")
    print(f"{written.path}: outputs differ from PyTorch's by {written.largest_difference:.1e} at most")


if __name__ == "__main__":
    main()
