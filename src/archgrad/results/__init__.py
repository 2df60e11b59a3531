"""What a method hands back, and its record."""
