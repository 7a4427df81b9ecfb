"""A Detectron2 project, trained with LossMix by Detectron2's own trainer: three names of its configuration are changed.

python examples/train_detectron2.py [OUTPUT_DIR] [KEY VALUE …]
"""

import sys

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator

from lossmix_det.detectron2_plugin import add_lossmix_config, register_datasets


class Trainer(DefaultTrainer):
    """What any Detectron2 project has of its own; nothing in it knows of mixing."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = DatasetMapper(cfg, is_train=True, augmentations=[T.RandomFlip()])
        return build_detection_train_loader(cfg, mapper=mapper)


def main(output: str, options: list[str]) -> None:
    classes = register_datasets(["shapes_photo_train", "shapes_photo_test"])
    cfg = get_cfg()
    add_lossmix_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "LossMixRCNN"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LossMixRPN"
    cfg.MODEL.ROI_HEADS.NAME = "LossMixROIHeads"
    cfg.LOSSMIX.PROBABILITY = 0.5

    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_photo_train",), ("shapes_photo_test",)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "GN", 0
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32, 64]]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(classes)
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 1, 4, 500
    cfg.OUTPUT_DIR = output
    cfg.merge_from_list(options)

    trainer = Trainer(cfg)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/detectron2", sys.argv[2:])
