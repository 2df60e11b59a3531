"""What search loops share: runs, training, selection under a limit, results."""
