"""The configuration: one tree of dataclasses. Each part of the program is given only its own group of settings.

Every field has a default; the defaults together are the quick run on the generated `shapes` benchmark. Limits of a
field stand beside it; what several fields must fulfil together stands in `rules` of their class, or of `Config` where
they are of several groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from lossmix_det.config.fields import Rule, Settings, among, choice, file, items, names, number, path, shares, weights
from lossmix_det.config.mixing import VIEWS, MixingConfig

ALIGNED = ("image", "instance")
TRACKED = ("wandb", "mlflow")

# By the setting that decides, and its value: the settings that are not read then, and what to do instead.
SAMPLES_NOTHING = {
    "rpn_samples": "leave it empty, because this detector learns from every anchor",
    "roi_samples": "leave it empty, because this detector learns from every anchor",
}
NOT_READ: dict[str, dict[str, dict[str, str]]] = {
    "engine": {
        "torchvision": {"detectron2_config": "set model.engine=detectron2, or leave it empty"},
        "detectron2": {
            "detector": "set model.engine=torchvision, or leave it at faster_rcnn",
            "norm": "set MODEL.RESNETS.NORM in model.detectron2_options instead",
            "trainable_layers": "set MODEL.BACKBONE.FREEZE_AT in model.detectron2_options instead",
            "drop_path": "set MODEL.TIMM.DROP_PATH in model.detectron2_options instead",
            "fpn_channels": "set MODEL.FPN.OUT_CHANNELS in model.detectron2_options instead",
        },
    },
    "detector": {"retinanet": SAMPLES_NOTHING, "fcos": SAMPLES_NOTHING},
}

TIMM_PREFIX = "timm/"  # of an architecture that is any network of timm
GROUPS = {"fcos": 32}  # of GroupNorm in the heads
ENGINE_WITHOUT = "detectron2"  # which reads no architecture


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
            *(names(key, getattr(self, key)) for key in ("train", "target", "test", "classes")),
        ]


@dataclass
class ModelConfig(Settings):
    """The detector: its engine, its network, the weights that it starts from."""

    engine: str = choice("torchvision", "detectron2")
    detector: str = "faster_rcnn"  # torchvision: faster_rcnn, retinanet, fcos
    detectron2_config: str = file()  # a Detectron2 YAML; empty: its defaults, ResNet-50-C4
    detectron2_options: list[str] = items()  # KEY, VALUE, KEY, VALUE, … over it, as in Detectron2's own tools
    # A backbone with its pyramid; timm/<name> for any of timm; or a whole network by torchvision's own name.
    architecture: str = "slim"
    # A local file; a torchvision weights name; timm: timm's own; lite0: of a PyPI package; empty: random weights.
    weights: str = path()
    norm: str = choice("auto", "frozen", "group", "batch")  # auto: frozen with weights, else group; timm: else batch
    drop_path: float = number(0.0, 0, 0.99)  # timm: share of residual branches left out in training
    fpn_channels: int | None = number(None, 8)  # timm: channels of the pyramid; null: 256
    trainable_layers: int | None = number(None, 0, 6)  # last backbone stages that learn; null: 3 with weights, else all
    rpn_samples: int | None = number(None, 1)  # anchors sampled per image; null: the model's own
    roi_samples: int | None = number(None, 1)  # proposals sampled per image; null: the model's own
    # Losses are a mean over the samples of the batch (stock), or of each image; RetinaNet: of each image (stock).
    normalizer: str = choice("samples", "images")
    canvases: str = choice("few", "one")  # images of a step: on the canvases that waste least, or all on one (stock)
    score_threshold: float = number(0.05, 0, 1)
    nms_threshold: float = number(0.5, 0, 1)
    detections_per_image: int = number(100, 1)

    def rules(self) -> list[Rule]:
        """A setting that is not read stays at its default, so that none is ignored in silence."""
        defaults = {spec.name: spec.default for spec in fields(self)}
        rules: list[Rule] = [
            (
                getattr(self, name) == defaults[name],
                f"{name}={getattr(self, name)} has no effect with model.{setting}={getattr(self, setting)}; {advice}",
            )
            for setting, table in NOT_READ.items()
            for name, advice in table.get(getattr(self, setting), {}).items()
        ]
        return [*rules, *self._timm_rules()]

    def _timm_rules(self) -> list[Rule]:
        """What is read for networks of timm alone, and by torchvision's engine alone."""
        name, of_timm = self.architecture, self.architecture.startswith(TIMM_PREFIX)
        return [
            (
                not of_timm or self.engine != ENGINE_WITHOUT,
                f"architecture={name} has no effect with model.engine={self.engine}; set MODEL.BACKBONE.NAME to "
                "build_timm_fpn_backbone and MODEL.TIMM.NAME in model.detectron2_options instead",
            ),
            *(
                (
                    of_timm or not getattr(self, key),
                    f"{key}={getattr(self, key)} has no effect with model.architecture={name}; it is for timm/…",
                )
                for key in ("drop_path", "fpn_channels")
            ),
            (
                (self.fpn_channels or 0) % GROUPS.get(self.detector, 1) == 0,
                f"fpn_channels={self.fpn_channels} must be a multiple of {GROUPS.get(self.detector)} with "
                f"model.detector={self.detector}, whose heads have GroupNorm",
            ),
        ]


@dataclass
class OptimizerConfig(Settings):
    """The optimizer and its learning rate over the steps."""

    name: str = choice("adamw", "sgd")
    lr: float = number(5e-4, 0, 1e3)
    backbone_lr_factor: float = number(1.0, 1e-6, 1e3)  # the backbone, without its pyramid, learns at lr times this
    momentum: float = number(0.9, 0, 1)
    weight_decay: float = number(0.02, 0)
    decay_biases: bool = False  # as Detectron2 does; norms are never decayed
    schedule: str = choice("cosine", "multistep", "constant")
    milestones: list[float] = items(0.75, 0.92)  # multistep: where the rate drops, as shares of train.steps
    gamma: float = number(0.1, 0, 1)
    warmup_steps: int = number(50, 0)
    warmup_factor: float = number(0.001, 0, 1)
    # Null: one schedule over all steps. Else it runs through up to adaptation.burn_in_steps, and anew from there with
    # this rate, whether or not there is a target.
    restart_lr: float | None = number(None, 0, 1e3)
    clip_norm: float = number(1.0, 0)  # largest norm of the gradient; 0: no clipping

    def rules(self) -> list[Rule]:
        """Milestones are shares of the steps."""
        return [shares("milestones", self.milestones)]


@dataclass
class EmaConfig(Settings):
    """The running average of the student's weights; in adaptation it is the teacher."""

    decay: float = number(0.0, 0, 1)  # share of the average that is kept per step; 0: no average
    warmup: bool = True  # start at (1 + step) / (10 + step), so that a short run is not its initial weights
    # Adaptation: the teacher is a copy of the student as burn-in ends; or the average kept since the first step; or
    # that average, from which the student starts again too.
    start: str = choice("copy", "follow", "restart")


@dataclass
class PseudoLabelConfig(Settings):
    """Which detections of the teacher are kept as truth for target images."""

    kind: str = choice("hard", "soft")  # boxes above the threshold; or the teacher's scores of the student's proposals
    threshold: str = choice("global", "per_class", "adaptive", "rising")
    score: float = number(0.8, 0, 1)  # least score; adaptive, rising: the highest that the least score may be
    class_scores: dict[str, float] = field(default_factory=dict)  # per_class: by class name; `score` if not named
    floor: float = number(0.5, 0, 1)  # adaptive: the lowest that the least score may be; rising: where it begins
    portion: float = number(0.2, 0, 1)  # adaptive: share of each class's detections to keep
    memory: float = number(0.99, 0, 1)  # adaptive: share of the score histogram kept per step
    box_score: float | None = number(None, 0, 1)  # least score to teach box regression; null: none does
    min_size: float = number(2.0, 0)  # pixels; smaller boxes are dropped
    max_per_image: int = number(50, 1)
    empty: str = choice("skip", "background")  # target images without a pseudo-label: left out, or background
    temperature: float = number(1.0, 1e-3, 1e3)  # soft

    def rules(self) -> list[Rule]:
        """Scores of classes."""
        return weights("class_scores", self.class_scores)


@dataclass
class AdaptationConfig(Settings):
    """Used where data.target names a data set."""

    burn_in_steps: int = number(400, 0)  # supervised steps before the teacher counts
    burn_in_from: str = path()  # a checkpoint or export to start from instead of burning in
    supervised_weight: float = number(1.0, 1e-6, 1e3)  # of every truth of the source
    unsupervised_weight: float = number(1.0, 0, 1e3)  # of every pseudo-label
    ramp_steps: int = number(0, 0)  # the unsupervised weight grows from 0 over this many steps after burn-in
    guard_steps: int = number(50, 1)  # warn after so many steps without pseudo-labels; collapse is judged over as many
    collapse_ratio: float = number(8.0, 1)  # collapse: the total score changed by this factor since burn-in ended
    restores: int = number(3, 0)  # on_collapse=restore: give up after this many

    def rules(self) -> list[Rule]:
        """Burn in, or start from what has burned in."""
        return [
            (
                not (self.burn_in_from and self.burn_in_steps),
                "burn_in_from takes the place of burn-in; set adaptation.burn_in_steps=0 with it",
            )
        ]


@dataclass
class AlignmentConfig(Settings):
    """Discriminators of the domain behind gradient reversal; their weights stand in train.loss_weights."""

    parts: list[str] = items()  # image, instance; empty: off
    level: str = ""  # feature level of the image part; empty: the coarsest level of the backbone
    instances: int = number(32, 1)  # instance part: best proposals of each image
    mixed: str = choice("soft", "skip")  # mixed images: the share of the target as label, or left out

    def rules(self) -> list[Rule]:
        """Parts that exist."""
        return [(among(self.parts, ALIGNED), f"parts={self.parts} may name image and instance")]


@dataclass
class TrainConfig(Settings):
    """The training loop: steps, precision, device, losses, and how often to log, evaluate and save."""

    steps: int = number(700, 1)
    accumulate: int = number(1, 1)  # micro-batches that a batch is cut into, to save memory
    precision: str = choice("32", "bf16", "fp16")
    seed: int = number(0, 0, 2**32 - 1)
    device: str = choice("auto", "cpu", "cuda")
    channels_last: bool | None = None  # memory layout of convolutions; null: on CPUs, unless the network has GroupNorm
    # By <kind>/<loss> or <kind> (source, target, mixed, alignment); not named: alignment 0.1, others 1; 0: left out.
    loss_weights: dict[str, float] = field(default_factory=dict)
    max_bad_steps: int = number(10, 1)  # stop after this many steps in a row whose loss is not finite
    # restore: go back to the last healthy checkpoint, and halve the unsupervised weight
    on_collapse: str = choice("warn", "stop", "restore")
    log_every: int = number(10, 1)
    eval_every: int = number(0, 0)  # 0: only at the end
    save_every: int = number(100, 1)
    keep_last: int = number(2, 1)
    best_metric: str = "AP50"  # "<metric>" of the last test set, or "<test set>/<metric>"
    report: bool = True  # write report.html at every evaluation and at the end
    # Early stopping: end after this many evaluations without a better best_metric; in adaptation those after burn-in
    # count. 0: never. The learning rate is still scheduled over all steps.
    patience: int = number(0, 0)
    callbacks: list[str] = items()  # classes of your own that are told of steps, scores and checkpoints
    trackers: list[str] = items()  # wandb, mlflow: send all numbers there as well (pip install 'lossmix-det[wandb]')

    def rules(self) -> list[Rule]:
        """Weights of losses; evaluations to be patient for; trackers that exist."""
        return [
            *weights("loss_weights", self.loss_weights),
            (
                not self.patience or self.eval_every,
                f"patience={self.patience} needs evaluations on the way; set train.eval_every, to 200 say",
            ),
            names("callbacks", self.callbacks),
            (among(self.trackers, TRACKED), f"trackers={self.trackers} may name wandb and mlflow"),
        ]


@dataclass
class Config(Settings):
    """All settings of a run."""

    output_dir: str = path("runs/shapes")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def rules(self) -> list[Rule]:
        """What settings of several groups must fulfil together."""
        return [*self._batch_rules(), *self._name_rules(), *self._target_rules(), *self._adaptation_rules()]

    def _batch_rules(self) -> list[Rule]:
        data, parts = self.data, self.train.accumulate
        batches = {"batch_size": data.batch_size, "target_batch_size": data.target_batch_size or data.batch_size}
        return [
            (size % parts == 0, f"data.{name}={size} is no multiple of train.accumulate={parts}; change either")
            for name, size in batches.items()
        ]

    def _name_rules(self) -> list[Rule]:
        """Scores and detections are filed under the names of data sets."""
        return [
            (not set("/\\") & set(str(name)), f"data set name {name!r} must be without slashes; use root")
            for name in (*self.data.train, *self.data.target, *self.data.test)
        ]

    def _target_rules(self) -> list[Rule]:
        """What has no effect without a target."""
        target = self.data.target
        return [
            (
                target or not self.adaptation.burn_in_from,
                "adaptation.burn_in_from needs data.target; to train on from weights set model.weights",
            ),
            (
                target or not self.alignment.parts,
                f"alignment.parts={self.alignment.parts} has no domain to align without data.target; name its images "
                "there, or leave alignment.parts empty",
            ),
        ]

    def _adaptation_rules(self) -> list[Rule]:
        """What adaptation to a target needs."""
        target, steps = self.data.target, self.train.steps
        burn_in = self.adaptation.burn_in_steps
        return [
            (
                not target or burn_in < steps,
                f"adaptation.burn_in_steps={burn_in} leaves nothing of train.steps={steps} to adapt in",
            ),
            (
                not target or self.ema.decay,
                "ema.decay=0 keeps no teacher; set it, to 0.999 say, to adapt to data.target",
            ),
        ]
