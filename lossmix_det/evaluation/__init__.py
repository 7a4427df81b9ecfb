"""Scores of a detector on a data set: COCO's AP and PASCAL VOC's AP50, side by side."""

from lossmix_det.evaluation.detect import detect_all, evaluate
from lossmix_det.evaluation.tables import print_tables, write_results

__all__ = ["detect_all", "evaluate", "print_tables", "write_results"]
