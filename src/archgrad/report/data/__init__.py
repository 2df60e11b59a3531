"""What is read of run folders."""
