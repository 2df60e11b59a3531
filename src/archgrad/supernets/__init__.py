"""What methods that search a supernet share."""
