"""Keras models that reszoo did not build."""
