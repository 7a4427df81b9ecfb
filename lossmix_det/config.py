"""The configuration: one tree of dataclasses, read from YAML with ``_BASE_`` and ``KEY=VALUE`` overrides.

Each part of the program is given only its own branch. Every field has a default; the defaults together are the quick
run on the generated `shapes` benchmark. Limits stand beside the fields and are checked on loading.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lossmix_det.errors import UserError, first_line, nearest

ARCHITECTURES = (
    "slim",
    "resnet18_fpn",
    "resnet34_fpn",
    "resnet50_fpn",
    "resnet101_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
)


def choice(default: str, *others: str) -> Any:
    """A string field that takes one of the given values."""
    return field(default=default, metadata={"choices": (default, *others)})


def number(default: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """A numeric field within [low, high]; a field that may be null is checked only when set."""
    return field(default=default, metadata={"low": low, "high": high})


def items(*default: Any) -> Any:
    return field(default_factory=lambda: list(default))


@dataclass
class DatasetConfig:
    """One data set, as declared in the YAML under `datasets`."""

    format: str = field(default="voc", metadata={"choices": ("voc", "coco", "folder")})
    root: str = ""  # folder that the other paths are relative to
    split: str = ""  # VOC: ImageSets/Main/<split>.txt; empty takes every annotated image
    annotations: str = ""  # COCO: the JSON file; VOC: the folder, "Annotations" if empty
    images: str = ""  # folder of the images; VOC: "JPEGImages" if empty
    classes: list[str] | None = None  # null: data.classes, else the names found
    ignore_classes: list[str] = items()  # boxes of these classes are left out without complaint
    pixel_origin: int = number(1, 0, 1)  # VOC: 1 if the first pixel is (1, 1), as in PASCAL VOC


@dataclass
class ShapesConfig:
    """The generated benchmark: data sets shapes_{photo,clipart}_{train,test}."""

    train_images: int = number(600, 1)
    test_images: int = number(200, 1)
    size: int = number(96, 64)  # pixels of the shorter side
    gap: float = number(1.0, 0, 1)  # 0: clip-art is rendered like the photos; 1: nothing but the outline is shared
    seed: int = number(0, 0)


@dataclass
class AugmentConfig:
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
    erasing: list[float] = items(0.7, 0.5, 0.3)  # one erasing per probability; empty switches it off


@dataclass
class DataConfig:
    train: list[str] = items("shapes_photo_train")
    test: list[str] = items("shapes_photo_test", "shapes_clipart_test")
    classes: list[str] | None = None  # null: those of the first training set
    views: list[str] = items("weak")  # views of each image in the batch: weak, strong or both
    batch_size: int = number(4, 1)  # images per step over all processes, before views are multiplied
    test_batch_size: int = number(8, 1)
    workers: int = number(1, 0)  # loading processes per training process
    group_by_shape: bool = True  # keep wide and tall images in separate batches, which saves padding
    keep_difficult: bool = True  # train on VOC's difficult objects
    drop_empty: bool = True  # leave out training images without a box
    on_error: str = choice("raise", "skip")
    high_bit_depth: str = choice("full", "stretch")  # 16-bit images: whole range, or from their 1st to 99th percentile
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class ModelConfig:
    engine: str = choice("torchvision")
    architecture: str = choice(*ARCHITECTURES)
    weights: str = ""  # a torchvision weights name, or a local file; empty starts from random weights
    norm: str = choice("auto", "frozen", "group", "batch")  # auto: frozen with weights, else group
    trainable_layers: int | None = number(None, 0, 6)  # last backbone stages that learn; null: 3 with weights, else all
    rpn_samples: int | None = number(None, 1)  # anchors sampled per image; null: the architecture's own
    roi_samples: int | None = number(None, 1)  # proposals sampled per image; null: the architecture's own
    normalizer: str = choice("samples", "images")  # mean over the samples of the batch (stock), or of each image
    score_threshold: float = number(0.05, 0, 1)
    nms_threshold: float = number(0.5, 0, 1)
    detections_per_image: int = number(100, 1)


@dataclass
class MixingConfig:
    rule: str = choice("lossmix", "lossmix_instance", "union", "noise", "none")
    alpha: float = number(1.0, 1e-3, 1e3)  # lam ~ Beta(alpha, alpha)
    probability: float = number(0.5, 0, 1)  # share of the images that are mixed
    off_last_steps: int = number(0, 0)  # train on clean images at the end
    weight_sum: float | None = number(None, 1e-3, 1e3)  # weights of one mixed image; null: 2 for union, else 1
    background_weight: float = number(1.0, 0, 1e3)  # lossmix_instance: weight of background samples
    noise_share: float = number(0.1, 0, 1)  # noise: the largest share of the other image


@dataclass
class OptimizerConfig:
    name: str = choice("adamw", "sgd")
    lr: float = number(5e-4, 0, 1e3)
    momentum: float = number(0.9, 0, 1)
    weight_decay: float = number(0.02, 0)
    schedule: str = choice("cosine", "multistep", "constant")
    milestones: list[float] = items(0.75, 0.92)  # multistep: where the rate drops, as shares of train.steps
    gamma: float = number(0.1, 0, 1)
    warmup_steps: int = number(50, 0)
    warmup_factor: float = number(0.001, 0, 1)
    clip_norm: float = number(1.0, 0)  # largest norm of the gradient; 0 switches clipping off


@dataclass
class EmaConfig:
    decay: float = number(0.0, 0, 1)  # share kept of the average per step; 0 keeps no average
    warmup: bool = True  # start at (1 + step) / (10 + step), so that a short run is not its initial weights


@dataclass
class TrainConfig:
    steps: int = number(700, 1)
    accumulate: int = number(1, 1)  # parts that a batch is cut into, one after the other, to save memory
    precision: str = choice("32", "bf16", "fp16")
    seed: int = number(0, 0, 2**32 - 1)
    device: str = choice("auto", "cpu", "cuda")
    loss_weights: dict[str, float] = field(default_factory=dict)  # by name, 1 if not named; 0 leaves a term out
    max_bad_steps: int = number(10, 1)  # stop after this many steps in a row whose loss is not finite
    log_every: int = number(10, 1)
    eval_every: int = number(0, 0)  # 0: only at the end
    save_every: int = number(100, 1)
    keep_last: int = number(2, 1)
    best_metric: str = "AP50"  # "<metric>" of the last test set, or "<test set>/<metric>"


@dataclass
class Config:
    output_dir: str = "runs/shapes"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file over the defaults, and ``KEY=VALUE`` overrides over that.

    Args:
        path: YAML file; its ``_BASE_`` (relative to it) is read first. Absent: the defaults.
        overrides: ``a.b=value`` strings, the value in YAML.

    Raises:
        UserError: a file is missing or malformed, a key is unknown, a value has the wrong type or lies out of range.
    """
    config = OmegaConf.structured(Config)
    try:
        for origin, part in [*_read_files(path), *_read_overrides(overrides or [])]:
            config = _merge(config, part, origin)
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{path or 'overrides'}: {first_line(error)}") from None
    check(result)
    return result


def save_config(config: Config, path: Path) -> None:
    """Write every setting as YAML that `load_config` reads back to the same configuration."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def check(config: Any, prefix: str = "") -> None:
    """Hold every field of a dataclass tree against the limits declared beside it.

    Raises:
        UserError: a value lies outside its limits, naming the key and what it takes.
    """
    for spec in fields(config):
        value, key = getattr(config, spec.name), prefix + spec.name
        if is_dataclass(value):
            check(value, f"{key}.")
        elif isinstance(value, dict):
            for name, entry in value.items():
                if is_dataclass(entry):
                    check(entry, f"{key}.{name}.")
        elif value is not None:
            _check_value(key, value, spec.metadata)
    if isinstance(config, Config):
        _check_together(config)


def _check_value(key: str, value: Any, limits: Any) -> None:
    choices = limits.get("choices")
    if choices and value not in choices:
        raise UserError(f"{key}={value!r} is not one of {', '.join(choices)}{nearest(str(value), list(choices))}")
    if "low" in limits and not limits["low"] <= value <= limits["high"]:  # also refuses nan
        raise UserError(f"{key}={value} lies outside of {limits['low']} … {limits['high']}")


def _check_together(config: Config) -> None:
    """What no single field can say."""
    data, train, augment = config.data, config.train, config.data.augment
    shares = {"data.augment.erasing": augment.erasing, "optimizer.milestones": config.optimizer.milestones}
    classes = data.classes or []
    names = {"data.train": data.train, "data.test": data.test, "data.classes": classes}
    views_known = bool(data.views) and set(data.views) <= {"weak", "strong"} and len(set(data.views)) == len(data.views)
    for holds, message in (
        (views_known, f"data.views={data.views} must be [weak], [strong] or [weak, strong]"),
        (
            data.batch_size % train.accumulate == 0,
            f"data.batch_size={data.batch_size} is no multiple of train.accumulate={train.accumulate}; change either",
        ),
        (
            bool(augment.min_sizes) and min(augment.min_sizes, default=0) >= 32,
            f"data.augment.min_sizes={augment.min_sizes} needs sizes of at least 32 pixels",
        ),
        (len(augment.erasing) <= 3, f"data.augment.erasing={augment.erasing} has more than three probabilities"),
        *(
            (all(0 <= v <= 1 for v in values), f"{key}={values} must lie within 0 … 1")
            for key, values in shares.items()
        ),
        *(
            (all(isinstance(v, str) for v in values), f"{key}={values} must be a list of names")
            for key, values in names.items()
        ),
        (len({str(name) for name in classes}) == len(classes), f"data.classes={classes} names a class twice"),
        *(
            (0 <= weight < math.inf, f"train.loss_weights.{name}={weight} must be a number of at least 0")
            for name, weight in train.loss_weights.items()
        ),
    ):
        if not holds:
            raise UserError(message)


def _read_files(path: str | Path | None, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """The file and its chain of bases, the base first."""
    if path is None:
        return []
    path = Path(path)
    if path.resolve() in seen:
        raise UserError(f"{path}: _BASE_ leads back to the file itself; remove one link of the circle")
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{path}: expected 'key: value' lines, found a list")
    base = content.pop("_BASE_", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: _BASE_ must be the path of one YAML file, got {base!r}")
    chain = _read_files(path.parent / base, (*seen, path.resolve())) if base else []
    return [*chain, (str(path), content)]


def _read_overrides(overrides: list[str]) -> list[tuple[str, DictConfig]]:
    parts = []
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise UserError(f"override {text!r} is not of the form KEY=VALUE, for example train.steps=100")
        try:
            parts.append((f"override {text!r}", OmegaConf.from_dotlist([text])))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"override {text!r}: {first_line(error)}") from None
    return parts


def _merge(config: DictConfig, part: DictConfig, origin: str) -> DictConfig:
    unknown = _unknown_key(part, Config)
    if unknown:
        key, known = unknown
        raise UserError(f"{origin}: unknown key {key!r}{nearest(key, known)}")
    try:
        return OmegaConf.merge(config, part)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{origin}: {f'{key}: ' if key else ''}{first_line(error)}") from None


def _unknown_key(part: Any, schema: type, prefix: str = "") -> tuple[str, list[str]] | None:
    """The first key that the schema does not have, and the keys that it has there."""
    if not OmegaConf.is_dict(part):
        return None
    known = {spec.name: spec for spec in fields(schema)}
    for key in part:
        if key not in known:
            return prefix + str(key), [prefix + name for name in known]
        below = known[key]
        if is_dataclass(below.default_factory):
            found = _unknown_key(part[key], below.default_factory, f"{prefix}{key}.")
        elif key == "datasets" and OmegaConf.is_dict(part[key]):
            entries = ((name, part[key][name]) for name in part[key])
            results = (_unknown_key(entry, DatasetConfig, f"datasets.{name}.") for name, entry in entries)
            found = next((result for result in results if result), None)
        else:
            found = None
        if found:
            return found
    return None


def as_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists and numbers."""
    return dataclasses.asdict(config)
