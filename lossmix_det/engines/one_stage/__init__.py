"""Detectors of one stage: every anchor is classified and its box predicted at once."""
