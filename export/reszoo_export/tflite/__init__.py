"""Everything specific to TFLite files."""
