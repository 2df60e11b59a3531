"""Reinforcement learning: tasks, agents, the space and RL-DARTS."""
