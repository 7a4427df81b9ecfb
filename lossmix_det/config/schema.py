"""The configuration: one tree of dataclasses. Each part of the program is given only its own group of settings.

Every field has a default; the defaults together are the quick run on the generated `shapes` benchmark. Limits of a
field stand beside it; what several fields must fulfil together stands in `rules` of their class, or of `Config` where
they are of several groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from lossmix_det.config.data import DataConfig, DatasetConfig, ShapesConfig
from lossmix_det.config.fields import Rule, Settings, among, choice, items, names, number, path, shares, weights
from lossmix_det.config.mixing import MixingConfig
from lossmix_det.config.model import ModelConfig

ALIGNED = ("image", "instance")
TRACKED = ("wandb", "mlflow")


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
    # multistep: where the rate drops, as shares of train.steps; with restart_lr, of burn-in and of what follows, each
    milestones: list[float] = items(0.75, 0.92)
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
    # Start at (1 + step) / (10 + step), so that a short run is not its initial weights; not if the teacher is a copy.
    warmup: bool = True
    # Adaptation: the teacher is a copy of the student as burn-in ends; or the average kept since the first step; or
    # that average, from which the student starts again too.
    start: str = choice("copy", "follow", "restart")


NOT_READ = {"soft": ("box_score", "box_agreement"), "hard": ("temperature",)}  # by kind of pseudo-labels
# By what only some thresholds read: these.
THRESHOLDS = {
    "class_scores": ("per_class",),
    "floor": ("adaptive", "rising"),
    "portion": ("adaptive",),
    "memory": ("adaptive",),
}


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
    box_score: float | None = number(
        None, 0, 1
    )  # least score to teach box regression; null: none does, but for box_agreement
    # least IoU with the box found in the mirror image to teach box regression, by the mean of both; null: not looked at
    box_agreement: float | None = number(None, 0, 1)
    min_size: float = number(2.0, 0)  # pixels; smaller boxes are dropped
    max_per_image: int = number(50, 1)
    empty: str = choice("skip", "background")  # target images without a pseudo-label: left out, or background
    temperature: float = number(1.0, 1e-3, 1e3)  # soft

    def rules(self) -> list[Rule]:
        """Scores of classes; boxes are chosen only where they are taught as such."""
        defaults = {spec.name: spec.default for spec in fields(self)} | {"class_scores": {}}
        return [
            *weights("class_scores", self.class_scores),
            *(
                (
                    self.threshold in readers or getattr(self, key) == defaults[key],
                    f"{key}={getattr(self, key)} has no effect with pseudo_labels.threshold={self.threshold}; set "
                    f"pseudo_labels.threshold={' or '.join(readers)}",
                )
                for key, readers in THRESHOLDS.items()
            ),
            *(
                (
                    getattr(self, key) == defaults[key],
                    f"{key}={getattr(self, key)} has no effect with pseudo_labels.kind={self.kind}; set "
                    + ("null" if defaults[key] is None else str(defaults[key])),
                )
                for key in NOT_READ.get(self.kind, ())
            ),
        ]

    @property
    def lowest(self) -> float:
        """The least score that a pseudo-label of any class may have."""
        floors = {"per_class": self.class_scores.values(), "adaptive": [self.floor], "rising": [self.floor]}
        return min([self.score, *floors.get(self.threshold, [])])

    @property
    def teaches_boxes(self) -> bool:
        """Whether any pseudo-label teaches box regression."""
        return self.box_score is not None or self.box_agreement is not None


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
        return [
            *self._batch_rules(),
            *self._name_rules(),
            *self._mixing_rules(),
            *self._target_rules(),
            *self._adaptation_rules(),
        ]

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

    def _mixing_rules(self) -> list[Rule]:
        """Mixing needs a view that the student sees (of the target, the strong one) and at least one mixed step."""
        views, mixing = [*self.data.views, *(["strong"] if self.data.target else [])], self.mixing
        mixes = mixing.probability or mixing.burn_in_probability
        return [
            (
                not mixes or set(views) & set(mixing.views),
                f"mixing.views={mixing.views} names no view that the student sees; name one of data.views="
                f"{self.data.views}, or set mixing.probability=0",
            ),
            (
                not mixes or mixing.off_last_steps < self.train.steps,
                f"mixing.off_last_steps={mixing.off_last_steps} leaves no mixed step among the {self.train.steps} of "
                "train.steps; lower it, or set mixing.probability and mixing.burn_in_probability to 0",
            ),
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
        detected, labelled = self.model.score_threshold, self.pseudo_labels.lowest
        return [
            (
                not target or detected <= max(labelled, ModelConfig.score_threshold),
                f"model.score_threshold={detected} hides what the teacher is to label from a score of {labelled:g} on; "
                f"lower it, to {ModelConfig.score_threshold} say, or raise the least score in pseudo_labels",
            ),
            (
                not target or burn_in < steps,
                f"adaptation.burn_in_steps={burn_in} leaves nothing of train.steps={steps} to adapt in",
            ),
            (
                not target or self.ema.decay,
                "ema.decay=0 keeps no teacher; set it, to 0.999 say, to adapt to data.target",
            ),
        ]
