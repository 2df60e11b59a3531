"""Drop-path: the probability to leave out a branch of the network, which grows along the training."""

from __future__ import annotations

from torch import nn

from archgrad.errors import ConfigError


class DropPathRamp:
    """Sets the probability of every drop-path module of a network: `last * progress`.

    Such a module has `drop_path` in its name, and its probability in `drop_prob` (as timm's DropPath) or `p` (as
    torch.nn.Dropout3d). The ramp is a function of progress alone, so that it needs no saving.

    Raises:
        ConfigError: the network has no such module.

    Source: the evaluation recipe of DARTS (arXiv 1806.09055), last = 0.2.
    """

    def __init__(self, network: nn.Module, last: float) -> None:
        self.last = last
        modules = [module for path, module in network.named_modules() if "drop_path" in path]
        self._before = [
            (module, name, getattr(module, name))
            for module in modules
            for name in ("drop_prob", "p")
            if isinstance(getattr(module, name, None), int | float)
        ]
        if not self._before:
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
