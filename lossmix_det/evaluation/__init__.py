"""Scores of a detector on a data set: COCO's AP and PASCAL VOC's AP50, side by side."""

from lossmix_det.evaluation.detect import METRICS, detect_all, evaluate
from lossmix_det.evaluation.predictor import Predictor
from lossmix_det.evaluation.scores import Scored, check_metric, metric_of, report_problems, score_models
from lossmix_det.evaluation.tables import print_tables, write_detections, write_results

__all__ = [
    "METRICS",
    "Predictor",
    "Scored",
    "check_metric",
    "detect_all",
    "evaluate",
    "metric_of",
    "print_tables",
    "report_problems",
    "score_models",
    "write_detections",
    "write_results",
]
