"""From choices to a plain network."""
