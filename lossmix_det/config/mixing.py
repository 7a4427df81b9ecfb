"""The ``mixing`` branch of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lossmix_det.config.fields import Rule, Settings, among, as_dict, choice, flat, items, number, weights
from lossmix_det.config.mixers import CoMixupConfig, PuzzleConfig

VIEWS = ("weak", "strong")
PASTES_OBJECTS = "classmix"  # the mixer that looks at the outlines of objects
GRADIENT = "gradient"
_LAM, _MASKS, _SALIENCY = {"alpha", "lam_range"}, {"least_visible"}, {"saliency", "clean_share"}
# By mixer, the settings that some mixers alone read. What is registered besides these may read any.
READS = {
    "classmix": _MASKS,
    "comixup": _MASKS | _SALIENCY | {"comixup"},
    "confmix": _MASKS | {"confmix_sure"},
    "cutmix": _LAM | _MASKS,
    "fmix": _LAM | _MASKS | {"fmix_decay"},
    "manifold": _LAM | {"stages"},
    "mixup": _LAM,
    "mosaic": _MASKS,
    "puzzlemix": _LAM | _MASKS | _SALIENCY | {"puzzle"},
    "sage": _LAM | _MASKS | _SALIENCY,
    "saliencymix": _LAM | _MASKS | _SALIENCY,
}
GONE_RULES = {
    "noise": "mixing.rule=own with mixing.lam_range=[0.9,1.0]",
    "none": "mixing.probability=0",
}


@dataclass
class PairsConfig(Settings):
    """For each image, the odds of a partner of its own domain and of the other; burn-in has no target×target."""

    source_source: float = number(1.0, 0, 1e3)
    source_target: float = number(1.0, 0, 1e3)
    target_target: float = number(1.0, 0, 1e3)

    def rules(self) -> list[Rule]:
        """Some pairs are left."""
        some = self.source_source or self.source_target or self.target_target
        return [(some, "source_source, source_target and target_target are all 0; instead set mixing.probability=0")]


@dataclass
class MixingConfig(Settings):
    """How images are mixed, and what a mixed image is taught."""

    # How pixels are mixed: one of mixing.mixers.MIXERS; or several of them with their weights, {mixup: 2, sage: 1}, of
    # which one is drawn for each step.
    mixer: Any = "mixup"
    rule: str = choice("lossmix", "lossmix_instance", "union", "own", gone=GONE_RULES)  # what a mixed image is taught
    weighting: str = choice("share", "visibility")  # a truth weighs its share of the image, or a box what is seen of it
    # Mixers that need saliency: by the image's spectrum, by its boxes, or by the gradient of the student's loss.
    saliency: str = choice("spectral", "boxes", GRADIENT)
    clean_share: float = number(0.0, 0, 1)  # gradient: weight of the loss of unmixed images, computed for it anyway
    stages: list[str] = items("0", "1", "2")  # manifold: where features are mixed; 0 the image, fpn the pyramid
    fmix_decay: float = number(3.0, 0, 100)  # fmix: how smooth the outlines of the patches are
    confmix_sure: float = number(0.5, 0, 1)  # confmix: a pseudo-label that scores more is sure
    least_visible: float = number(0.1, 0, 1)  # under masks, boxes of which a smaller share is seen are dropped
    alpha: float = number(1.0, 1e-3, 1e3)  # lam ~ Beta(alpha, alpha); not read by classmix, comixup, confmix, mosaic
    probability: float = number(0.5, 0, 1)  # share of the images that are mixed
    burn_in_probability: float | None = number(None, 0, 1)  # the same in burn-in; null: probability
    off_last_steps: int = number(0, 0)  # train on clean images at the end
    weight_sum: float | None = number(None, 1e-3, 1e3)  # of one mixed image; null: K for union, else 1
    background_weight: float = number(1.0, 0, 1e3)  # lossmix_instance: weight of background samples
    noise_share: float = number(0.1, 0, 1)  # burn_in_rule noise: the largest share of the target image
    # lam becomes low + (high - low)·lam; null: [0, 1], for sage [0, 0.5]; not read by those either
    lam_range: list[float] | None = None
    views: list[str] = items("weak", "strong")  # views whose images are mixed; partners are of the same view
    pairs: PairsConfig = field(default_factory=PairsConfig)
    puzzle: PuzzleConfig = field(default_factory=PuzzleConfig)  # mixer puzzlemix
    comixup: CoMixupConfig = field(default_factory=CoMixupConfig)  # mixer comixup
    burn_in_rule: str = choice("noise", "lam", "max")  # source×target while the target has no truth; see docs/method.md

    @property
    def in_burn_in(self) -> MixingConfig:
        """The same with the share of images that burn-in mixes."""
        share = self.burn_in_probability
        return self if share is None else replace(self, probability=share)

    @property
    def pastes_objects(self) -> bool:
        """Whether any image is mixed by the outlines of objects, so that these are worth reading."""
        return bool(self._weights.get(PASTES_OBJECTS)) and bool(self.probability or self.burn_in_probability)

    @property
    def _weights(self) -> dict[str, float]:
        """The mixers, and how likely each is."""
        return self.mixer if isinstance(self.mixer, dict) else {self.mixer: 1.0}

    def rules(self) -> list[Rule]:
        """A range of λ; views that exist; nothing is set that is not read."""
        lam_range = [0.0, 1.0] if self.lam_range is None else self.lam_range
        is_range = isinstance(lam_range, (list, tuple)) and len(lam_range) == 2
        is_range = is_range and all(isinstance(value, (int, float)) for value in lam_range)
        low, high = lam_range if is_range else (1.0, 0.0)
        return [
            (0 <= low <= high <= 1, f"lam_range={self.lam_range} must be [low, high] within 0 … 1"),
            (among(self.views, VIEWS), f"views={self.views} may name weak and strong"),
            (self.views, "views=[] leaves no view to mix; name weak or strong, or set mixing.probability=0"),
            (self.stages, "stages=[] leaves manifold nothing to mix; name 0 for the image, or a stage of the backbone"),
            (
                not self.clean_share or self.saliency == GRADIENT,
                f"clean_share={self.clean_share} has no effect with mixing.saliency={self.saliency}; set gradient",
            ),
            *self._mixer_rules(),
            *self._unread(),
        ]

    def _unread(self) -> list[Rule]:
        """Settings that differ from their defaults, but that neither the rule nor any of the mixers reads.

        Where nothing is mixed nothing is read, and a baseline may keep the settings of what it is compared with.
        """
        if not (self.probability or self.burn_in_probability):
            return []
        if not all(holds for holds, _ in self._mixer_rules()):
            return []
        mixers = [name for name, weight in self._weights.items() if weight]
        unread = set() if self.rule == "lossmix_instance" else {"background_weight"}
        unread |= set() if self.burn_in_rule == "noise" else {"noise_share"}
        if all(name in READS for name in mixers):
            unread |= set().union(*READS.values()).difference(*(READS[name] for name in mixers))
        values, defaults = flat(as_dict(self)), flat(as_dict(MixingConfig()))
        reader = {"background_weight": f"rule={self.rule}", "noise_share": f"burn_in_rule={self.burn_in_rule}"}
        return [
            (
                values[key] == default,
                f"{key}={values[key]} has no effect with mixing.{reader.get(key, f'mixer={self.mixer}')}; set "
                f"mixing.{key}={'null' if default is None else default}",
            )
            for key, default in defaults.items()
            if key.partition(".")[0] in unread
        ]

    def _mixer_rules(self) -> list[Rule]:
        """A name, or a table of weights by name."""
        if isinstance(self.mixer, str):
            return []
        if not isinstance(self.mixer, dict) or not all(isinstance(name, str) for name in self.mixer):
            return [(False, f"mixer={self.mixer} must be a name, or weights by name such as {{mixup: 2, sage: 1}}")]
        if not all(isinstance(weight, (int, float)) for weight in self.mixer.values()):
            return [(False, f"mixer={self.mixer} must have numbers as weights, such as {{mixup: 2, sage: 1}}")]
        some = any(self.mixer.values())
        return [*weights("mixer", self.mixer), (some, f"mixer={self.mixer} gives no mixer a weight above 0")]
