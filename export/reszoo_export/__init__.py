"""The exporter: from a checkpoint to files that provably answer like it."""
