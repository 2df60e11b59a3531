"""What a command is given, opened."""
