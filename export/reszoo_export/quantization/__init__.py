"""Quantization: calibration images, activation ranges, weight grids."""
