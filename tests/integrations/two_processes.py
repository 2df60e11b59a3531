"""A program for torchrun: both processes train a space on halves of the data, and write their logits."""

import os
import sys

import torch
from families.timm_shim import make_torchvision_importable
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import archgrad as ag

library, folder = sys.argv[1:]
make_torchvision_importable()
torch.manual_seed(0)
x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
y = x[:, :4].sum(1, keepdim=True)


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


space = ag.slim(Regression(), example=x[:1])
options = {"limit": ag.macs(x[:1]).at_most(fraction=0.5)}
if library == "lightning":
    import lightning.pytorch as pl

    from archgrad.integrations import LightningGateCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = space

        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    gates = LightningGateCallback(space, **options)
    pl.Trainer(
        max_epochs=3, accelerator="cpu", strategy="ddp", devices=2, callbacks=[gates], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    ).fit(Module(), DataLoader(TensorDataset(x, y), 8))  # fmt: skip
else:
    import transformers

    from archgrad.integrations import TransformersGateCallback

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, *more, **named):
            return nn.functional.mse_loss(model(inputs["x"]), inputs["y"])

    gates = TransformersGateCallback(space, **options)
    args = transformers.TrainingArguments(
        folder, num_train_epochs=3, per_device_train_batch_size=8, optim="sgd", learning_rate=0.05, use_cpu=True,
        max_grad_norm=0.0, lr_scheduler_type="constant", report_to="none", disable_tqdm=True, save_strategy="no",
        remove_unused_columns=False,
    )  # fmt: skip
    Trainer(
        space, args, train_dataset=[{"x": a, "y": b} for a, b in zip(x, y, strict=True)], callbacks=[gates]
    ).train()
values = [p.detach() for p in space.parameters()]
torch.save(
    {"steps": gates.gates.steps_taken, "of": gates.gates.steps, "values": values}, f"{folder}/{os.environ['RANK']}.pt"
)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # threads of gloo that outlive it abort the process
