"""What no single setting can say: settings that must fit each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossmix_det.config import Config, MixingConfig

VIEWS = ("weak", "strong")
PARTS = ("image", "instance")
Rule = tuple[Any, str]  # whether it holds, and what is said if not


def rules_of(config: Config) -> list[Rule]:
    """All that concerns a whole configuration."""
    return [*_data_rules(config), *_list_rules(config), *_model_rules(config), *_adaptation_rules(config)]


def _data_rules(config: Config) -> list[Rule]:
    data, sizes, parts = config.data, config.data.augment.min_sizes, config.train.accumulate
    batches = {"batch_size": data.batch_size, "target_batch_size": data.target_batch_size or data.batch_size}
    classes = [str(name) for name in data.classes or []]
    rules: list[Rule] = [
        (data.views and _known(data.views, VIEWS), f"data.views={data.views} must be [weak], [strong] or both"),
        (sizes and min(sizes) >= 32, f"data.augment.min_sizes={sizes} needs sizes of at least 32 pixels"),
        (len(set(classes)) == len(classes), f"data.classes={classes} names a class twice"),
    ]
    for name, size in batches.items():
        message = f"data.{name}={size} is no multiple of train.accumulate={parts}; change either"
        rules.append((size % parts == 0, message))
    return rules


def _list_rules(config: Config) -> list[Rule]:
    """Lists and tables of one kind of value."""
    data, erasing = config.data, config.data.augment.erasing
    shares = {"data.augment.erasing": erasing, "optimizer.milestones": config.optimizer.milestones}
    names = {"data.train": data.train, "data.target": data.target, "data.test": data.test}
    names["data.classes"] = data.classes or []
    tables = {
        "train.loss_weights": config.train.loss_weights,
        "pseudo_labels.class_scores": config.pseudo_labels.class_scores,
    }
    rules: list[Rule] = [
        (len(erasing) <= 3, f"data.augment.erasing={erasing} has more than three probabilities"),
        (
            _known(config.alignment.parts, PARTS),
            f"alignment.parts={config.alignment.parts} may name image and instance",
        ),
    ]
    for key, values in shares.items():
        rules.append((all(0 <= value <= 1 for value in values), f"{key}={values} must lie within 0 … 1"))
    for key, values in names.items():
        rules.append((all(isinstance(value, str) for value in values), f"{key}={values} must be a list of names"))
    for name in (*data.train, *data.target, *data.test):  # scores and detections are filed under them
        rules.append((not set("/\\") & set(str(name)), f"data set name {name!r} must be without slashes; use root"))
    for key, table in tables.items():
        for name, weight in table.items():
            rules.append((0 <= weight < math.inf, f"{key}.{name}={weight} must be a number of at least 0"))
    return rules


def mixing_rules(mixing: MixingConfig, prefix: str) -> list[Rule]:
    """Those of mixing alone, which a Detectron2 configuration may hold too."""
    low, high = mixing.lam_range if len(mixing.lam_range) == 2 else (1.0, 0.0)
    return [
        (0 <= low <= high <= 1, f"{prefix}lam_range={mixing.lam_range} must be [low, high] within 0 … 1"),
        (_known(mixing.views, VIEWS), f"{prefix}views={mixing.views} may name weak and strong"),
    ]


def _model_rules(config: Config) -> list[Rule]:
    """What only torchvision's models take is not left without effect in silence."""
    model = config.model
    rules = []
    for name, given, key in (
        ("norm", model.norm != "auto", "RESNETS.NORM"),
        ("trainable_layers", model.trainable_layers is not None, "BACKBONE.FREEZE_AT"),
    ):
        message = (
            f"model.{name}={getattr(model, name)} has no effect with model.engine=detectron2; set MODEL.{key} in "
            f"model.detectron2_options instead"
        )
        rules.append((not given or model.engine != "detectron2", message))
    message = (
        f"model.detectron2_config={model.detectron2_config!r} has no effect with model.engine=torchvision; set "
        "model.engine=detectron2, or leave it empty"
    )
    return [*rules, (not model.detectron2_config or model.engine == "detectron2", message)]


def _adaptation_rules(config: Config) -> list[Rule]:
    adaptation, steps, rule = config.adaptation, config.train.steps, config.mixing.rule
    adapts, burn_in = bool(config.data.target), config.adaptation.burn_in_steps
    return [
        (
            not (adaptation.burn_in_from and burn_in),
            "adaptation.burn_in_from takes the place of burn-in; set adaptation.burn_in_steps=0 with it",
        ),
        (
            adapts or not adaptation.burn_in_from,
            "adaptation.burn_in_from needs data.target; to train on from weights set model.weights",
        ),
        (
            adapts or not config.alignment.parts,
            f"alignment.parts={config.alignment.parts} has no domain to align without data.target; name its images "
            "there, or leave alignment.parts empty",
        ),
        (
            not adapts or burn_in < steps,
            f"adaptation.burn_in_steps={burn_in} leaves nothing of train.steps={steps} to adapt in",
        ),
        (
            not adapts or config.ema.decay,
            "ema.decay=0 keeps no teacher; set it, to 0.999 say, to adapt to data.target",
        ),
        (
            config.pseudo_labels.kind == "hard" or rule not in ("union", "lossmix_instance"),
            f"pseudo_labels.kind=soft has no boxes that mixing.rule={rule} could join; use lossmix or noise",
        ),
    ]


def _known(chosen: list[str], known: tuple[str, ...]) -> bool:
    return set(chosen) <= set(known) and len(set(chosen)) == len(chosen)
