"""Comparisons of methods, and measurements of what they cost; called by tools/benchmark.py."""
