"""What methods that try many networks share."""
