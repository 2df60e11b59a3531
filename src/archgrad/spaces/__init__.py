"""Ready search spaces."""
