"""One writer a format: a serving function becomes a file."""
