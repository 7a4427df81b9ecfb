"""LossMix: mix images, interpolate the losses; for object detection and domain adaptation."""

__version__ = "0.2.0"
