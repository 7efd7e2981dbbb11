"""Every file is run in its own runtime and held against its model."""
