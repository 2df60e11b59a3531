"""TopoNAS."""
