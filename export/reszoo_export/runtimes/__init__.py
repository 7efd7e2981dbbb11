"""One way to ask, whatever runs the file."""
