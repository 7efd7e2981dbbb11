"""Everything specific to TensorFlow SavedModels."""
