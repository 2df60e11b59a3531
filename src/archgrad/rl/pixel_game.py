"""A small game of images to try agents on: collect gems, avoid traps, on levels by seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from archgrad.errors import ConfigError, MissingExtra

try:
    import gymnasium
    from gymnasium.spaces import Box, Discrete
except ImportError as error:
    raise MissingExtra("gymnasium", "rl") from error

WALL, GEM, TRAP, PLAYER = (90, 90, 90), (40, 200, 90), (220, 50, 50), (250, 250, 250)
Image = NDArray[np.uint8]
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


class PixelGame(gymnasium.Env[Image, np.int64]):
    """A walled square with one pixel per field: images [size, size, 3], four actions: up, down, left, right.

    A gem earns 1 and disappears. A trap costs 1 and ends the episode; the last gem ends it too. After `max_steps`
    steps an episode is truncated. The seed given to `reset` is the level: it decides where everything stands. The
    highest return is `gems`.

    Args:
        size: of the square in fields, walls included.
        gems: number in a level.
        traps: number in a level.
        blocks: number of walls inside the square.
        max_steps: length of an episode.

    Raises:
        ConfigError: there are more things than fields.

    Example:
        >>> from archgrad.rl import PixelGame
        >>> image, _ = PixelGame(size=8).reset(seed=3)
        >>> image.shape
        (8, 8, 3)
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self, *, size: int = 8, gems: int = 5, traps: int = 3, blocks: int = 2, max_steps: int = 40,
        render_mode: str | None = None,
    ) -> None:  # fmt: skip
        if gems < 1 or gems + traps + blocks + 1 > (size - 2) ** 2:
            raise ConfigError(
                f"{gems} gems, {traps} traps, {blocks} blocks and a player do not fit into a square of {size}"
            )
        self.size, self.counts, self.max_steps, self.render_mode = size, (gems, traps, blocks), max_steps, render_mode
        self.observation_space = Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = Discrete(len(MOVES))

    def __repr__(self) -> str:
        return f"<PixelGame, {self.size} x {self.size}, at most {self.max_steps} steps>"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Image, dict[str, Any]]:
        """Begin a level: that of the seed, or the next one without a seed."""
        super().reset(seed=seed)
        gems, traps, blocks = self.counts
        inside = [(y, x) for y in range(1, self.size - 1) for x in range(1, self.size - 1)]
        fields = [inside[i] for i in self.np_random.permutation(len(inside))[: 1 + gems + traps + blocks]]
        self._player, self._gems = fields[0], set(fields[1 : 1 + gems])
        self._traps, self._walls = set(fields[1 + gems : 1 + gems + traps]), set(fields[1 + gems + traps :])
        self._steps = 0
        return self._image(), {}

    def step(self, action: np.int64 | int) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        """Move by one field, unless a wall stands there."""
        down, right = MOVES[int(action)]
        field = (self._player[0] + down, self._player[1] + right)
        if field not in self._walls and all(0 < side < self.size - 1 for side in field):
            self._player = field
        self._steps += 1
        trapped, found = self._player in self._traps, self._player in self._gems
        self._gems.discard(self._player)
        ended = trapped or not self._gems
        return self._image(), float(found) - float(trapped), ended, not ended and self._steps >= self.max_steps, {}

    def render(self) -> Image:
        """The present image, as observed."""
        return self._image()

    def _image(self) -> Image:
        image = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        image[[0, -1]] = image[:, [0, -1]] = WALL
        for fields, color in ((self._walls, WALL), (self._gems, GEM), (self._traps, TRAP), ({self._player}, PLAYER)):
            for field in fields:
                image[field] = color
        return image
