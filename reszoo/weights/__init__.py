"""Weight files: locations, one reader per file format, tensor names, loading."""
