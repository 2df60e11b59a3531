"""Reinforcement learning: the task of an agent, PPO, the cell space of RL-DARTS, and Stable-Baselines3.

`archgrad` itself exports `Reinforcement`, `impala_cells`, `impala_network` and `rl_darts`; this room
exports what goes with them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
