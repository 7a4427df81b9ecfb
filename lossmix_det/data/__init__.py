"""Data sets from disk to batches: formats, catalogue, the generated benchmark, augmentation, loading."""
