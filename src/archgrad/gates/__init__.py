"""What methods that decide gates share."""
