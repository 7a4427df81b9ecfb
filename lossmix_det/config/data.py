"""The ``data``, ``datasets`` and ``shapes`` branches of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lossmix_det.config.fields import Rule, Settings, among, choice, items, names, number, shares
from lossmix_det.config.mixing import VIEWS


@dataclass
class DatasetConfig(Settings):
    """One data set, as declared in the YAML under `datasets`."""

    format: str = "auto"  # auto (told from the folder), voc, coco, yolo, huggingface, folder, or one added to FORMATS
    root: str = ""  # folder that the other paths are relative to
    split: str = ""  # a part of the data set, such as train: a list, a folder or a file; VOC: empty takes all
    annotations: str = ""  # COCO: the JSON file; YOLO: data.yaml; VOC: the folder, "Annotations" if empty
    images: str = ""  # folder of the images; VOC: "JPEGImages" if empty
    classes: list[str] | None = None  # null: data.classes, else the names found; YOLO: in the order of the numbers
    ignore_classes: list[str] = items()  # boxes of these classes are left out silently
    pixel_origin: int = number(1, 0, 1)  # VOC: 1 if the first pixel is (1, 1), as in PASCAL VOC
    exif: str = choice("apply", "ignore")  # turn images by their EXIF orientation, or leave pixels as they are stored
    holdout: float = number(0.0, 0, 1)  # share of the images that is held out, always the same ones by their names
    held_out: bool = False  # these are the images that another declaration with the same holdout leaves out

    def rules(self) -> list[Rule]:
        """What is held out is a part."""
        return [
            (self.holdout < 1, f"holdout={self.holdout} leaves nothing; give a share below 1"),
            (self.holdout or not self.held_out, "held_out needs holdout, the share of the images, such as 0.1"),
        ]


@dataclass
class ShapesConfig(Settings):
    """The generated benchmark: data sets shapes_{photo,clipart}_{train,test}."""

    train_images: int = number(600, 1)
    test_images: int = number(200, 1)
    size: int = number(96, 64)  # pixels of the shorter side
    gap: float = number(1.0, 0, 1)  # 0: clip-art looks like the photos; 1: they share nothing but the outlines
    seed: int = number(0, 0)


@dataclass
class MaskingConfig(Settings):
    """Blocks that are blacked out in the strong view of the target (masked image consistency)."""

    ratio: float = number(0.0, 0, 1)  # probability of each block; 0: none
    block: int = number(32, 1)  # pixels of a side, in images as they enter the network


@dataclass
class AugmentConfig(Settings):
    """Geometry is drawn once and shared by both views; the strong view adds colour, blur and erasing."""

    min_sizes: list[int] = items(96)  # short side in pixels, one drawn per image; evaluation takes test_size
    max_size: int = number(1333, 32)  # the longer side is never more
    test_size: int | None = number(None, 32)  # null: the last of min_sizes
    flip: float = number(0.5, 0, 1)
    crop: float = number(0.0, 0, 1)  # probability of a random crop that keeps at least half of each side
    min_visibility: float = number(0.1, 0, 1)  # a box is dropped when a crop leaves less than this share of it
    jitter: float = number(0.8, 0, 1)  # probabilities of the strong view's parts (Adaptive Teacher's values)
    hue: float = number(0.1, 0, 0.5)
    grayscale: float = number(0.2, 0, 1)
    blur: float = number(0.5, 0, 1)
    erasing: list[float] = items(0.7, 0.5, 0.3)  # one erasing per probability; empty: none
    target_erasing: list[float] | None = None  # the same of the target's strong view; null: erasing
    masking: MaskingConfig = field(default_factory=MaskingConfig)  # of the target's strong view

    def rules(self) -> list[Rule]:
        """Sizes that a detector can take; probabilities."""
        sizes, erasings = self.min_sizes, {"erasing": self.erasing, "target_erasing": self.target_erasing or []}
        return [
            (sizes and min(sizes) >= 32, f"min_sizes={sizes} needs sizes of at least 32 pixels"),
            *(
                (len(erasing) <= 3, f"{key}={erasing} has more than three probabilities")
                for key, erasing in erasings.items()
            ),
            *(shares(key, erasing) for key, erasing in erasings.items()),
        ]

    def of_source(self) -> AugmentConfig:
        """The settings for images that are not of the target."""
        return replace(self, masking=MaskingConfig())

    def of_target(self) -> AugmentConfig:
        """The settings for images of the target."""
        return self if self.target_erasing is None else replace(self, erasing=self.target_erasing)


@dataclass
class DataConfig(Settings):
    """Which images, how they are batched, and what to do about faults in them."""

    train: list[str] = items("shapes_photo_train")
    target: list[str] = items()  # unlabelled images to adapt to; labels that exist are only used to measure
    test: list[str] = items("shapes_photo_test", "shapes_clipart_test")
    classes: list[str] | None = None  # null: those of the first training set
    imports: list[str] = items()  # Python modules that add to our tables, or register with Detectron2
    views: list[str] = items("weak")  # views of each image in the batch: weak, strong or both
    batch_size: int = number(4, 1)  # images per step over all processes, before views are multiplied
    target_batch_size: int | None = number(None, 1)  # target images per step; null: batch_size
    test_batch_size: int = number(8, 1)
    workers: int = number(1, 0)  # loading processes per training process
    group_by_shape: bool = True  # keep wide and tall images in separate batches, which saves padding
    keep_difficult: bool = True  # train on VOC's difficult objects
    drop_empty: bool = True  # leave out training images without a box
    on_error: str = choice("raise", "skip")
    remember: bool = True  # data sets that were checked are not checked again until a file of theirs changes
    high_bit_depth: str = choice("full", "stretch")  # 16-bit images: whole range, or from their 1st to 99th percentile
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def rules(self) -> list[Rule]:
        """Names, and views that exist."""
        classes = [str(name) for name in self.classes or []]
        return [
            (self.views and among(self.views, VIEWS), f"views={self.views} must be [weak], [strong] or both"),
            (len(set(classes)) == len(classes), f"classes={classes} names a class twice"),
            (
                len(set(self.test)) == len(self.test),
                f"test={self.test} names a data set twice; its scores would be the same",
            ),
            *(names(key, getattr(self, key)) for key in ("train", "target", "test", "classes")),
        ]
