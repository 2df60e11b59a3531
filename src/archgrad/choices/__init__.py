"""Where a network may vary: choices, their relaxations, and how to reach them."""
