"""Drop-path that grows along training: the probability to leave a branch of the network out."""

from __future__ import annotations

from torch import nn

from archgrad.errors import ConfigError


class DropPathRamp:
    """Sets the probability of every drop-path module of a network: `last * progress`.

    Such a module is called `drop_path`, or a name that has this in it, and holds its probability in `drop_prob` (as
    timm's DropPath) or `p` (as torch.nn.Dropout3d). The ramp is a function of progress alone, so that it needs no
    saving. Raises ConfigError where the network has none.

    Source: the evaluation recipe of DARTS (arXiv 1806.09055), last = 0.2.
    """

    def __init__(self, network: nn.Module, last: float) -> None:
        self.last = last
        named = [module for path, module in network.named_modules() if "drop_path" in path]
        found = [(module, name) for module in named for name in ("drop_prob", "p") if _is_number(module, name)]
        self._before = [(module, name, getattr(module, name)) for module, name in found]
        if not found:
            raise ConfigError(
                f"drop_path={last} was given, but {type(network).__name__} has no module named drop_path with a "
                "probability `p` or `drop_prob`. Put torch.nn.Dropout3d (on x.unsqueeze(1)) or timm's DropPath into "
                "attributes of that name, or leave drop_path at 0."
            )

    def set(self, progress: float) -> None:
        """Set the probability at `progress` in [0, 1] through the training."""
        for module, name, _ in self._before:
            setattr(module, name, self.last * progress)

    def undo(self) -> None:
        """Set each probability to what it was before the ramp."""
        for module, name, probability in self._before:
            setattr(module, name, probability)


def _is_number(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), int | float)
