"""Studies: networks with and without shortcuts, compared over depths."""
