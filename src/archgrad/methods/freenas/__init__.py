"""FreeNAS."""
