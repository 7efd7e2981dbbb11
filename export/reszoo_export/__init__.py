"""The exporter: writes SavedModel, TFLite and ONNX files and verifies them."""
