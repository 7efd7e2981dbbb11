"""The report of an export, for people."""
