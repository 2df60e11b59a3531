"""What a network takes: counted and measured costs, and limits on them."""
