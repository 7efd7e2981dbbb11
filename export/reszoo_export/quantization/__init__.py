"""Calibration images, and ranges chosen by what they do to the answers."""
