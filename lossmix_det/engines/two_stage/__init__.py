"""Losses of two-stage detectors, weighted per image; what is left to an engine is a few methods of a `Stage`."""
