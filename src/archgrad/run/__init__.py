"""One run of a method: folder, state, history, device, budgets."""
