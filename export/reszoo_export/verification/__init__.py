"""Verification: every file is run in its own runtime and compared with its model."""
