"""Weight files: one reader a format, one map of names."""
