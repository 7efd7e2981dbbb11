"""ResNets that reszoo did not build: read by structure, or refused."""
