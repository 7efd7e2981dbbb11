"""Everything specific to ONNX files."""
