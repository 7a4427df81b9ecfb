"""Feature pyramids on any network of timm for Detectron2, also in projects of one's own.

In a project of your own::

    from lossmix_det.engines.detectron2.timm_fpn import add_timm_config, set_timm_pixels

    add_timm_config(cfg)            # before the YAML is read
    cfg.merge_from_file("my.yaml")  # MODEL: {BACKBONE: {NAME: build_timm_fpn_backbone}, TIMM: {NAME: convnext_tiny}, …}
    set_timm_pixels(cfg)            # colours, mean and deviation that the network was trained with
"""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from lossmix_det.config import TIMM_PREFIX
from lossmix_det.engines.timm_body import TimmBody, check_name, import_timm
from lossmix_det.engines.weights import load_backbone, read_weights
from lossmix_det.errors import UserError, pick

NORMS = {"FrozenBN": "frozen", "BN": "batch"}  # Detectron2's names
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}  # as Detectron2 names what has these strides
LAST = "res5"  # Detectron2's LastLevelMaxPool reads p5
PIXELS = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")


def add_timm_config(cfg: CfgNode) -> None:
    """Add ``MODEL.TIMM`` to a Detectron2 configuration.

    Args:
        cfg: ``NAME`` of the network; ``WEIGHTS``, as `model.weights` takes them, for the backbone alone; ``NORM``,
            FrozenBN or BN; ``DROP_PATH``, the share of residual branches left out in training.
    """
    cfg.MODEL.TIMM = CfgNode({"NAME": "", "WEIGHTS": "", "NORM": "FrozenBN", "DROP_PATH": 0.0})


def set_timm_pixels(cfg: CfgNode) -> None:
    """Set colours, mean and deviation to those that the network was trained with, where they are Detectron2's defaults.

    Args:
        cfg: a configuration whose ``MODEL.TIMM.NAME`` names a network.

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    for key, value in _pixels(cfg.MODEL.TIMM.NAME).items():
        if _get(cfg, key) == _get(get_cfg(), key):
            cfg.merge_from_list([key, value])


class TimmBottomUp(TimmBody, Backbone):
    """A network of timm as Detectron2 takes a backbone."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level, by name."""
        return {name: ShapeSpec(channels=self.channels[name], stride=stride) for name, stride in self.strides.items()}


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, _: ShapeSpec) -> FPN:
    """For ``MODEL.BACKBONE.NAME``: Detectron2's pyramid on the network ``MODEL.TIMM.NAME``.

    Stages do not learn up to stride 2, 4, … for ``MODEL.BACKBONE.FREEZE_AT`` 1, 2, …, as in Detectron2's ResNets.

    Raises:
        UserError: a setting of ``MODEL.TIMM`` cannot be fulfilled, or images would be normalised in another way than
            the network was trained with.
    """
    if "TIMM" not in cfg.MODEL or not cfg.MODEL.TIMM.NAME:
        raise UserError("MODEL.BACKBONE.NAME: build_timm_fpn_backbone needs add_timm_config(cfg) and MODEL.TIMM.NAME")
    ours, levels = cfg.MODEL.TIMM, list(cfg.MODEL.FPN.IN_FEATURES) or list(STRIDES)
    _check_pixels(cfg)
    strides = {level: pick(STRIDES, level, "MODEL.FPN.IN_FEATURES") for level in levels}
    if levels[-1] != LAST:
        raise UserError(f"MODEL.FPN.IN_FEATURES={levels} must end in {LAST}, of which the coarsest level is made")
    norm = pick(NORMS, ours.NORM, "MODEL.TIMM.NORM")
    body = TimmBottomUp(ours.NAME, strides, f"MODEL.TIMM.NAME={ours.NAME}", norm, ours.DROP_PATH)
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        body.freeze(2**cfg.MODEL.BACKBONE.FREEZE_AT)
    if ours.WEIGHTS:
        state = read_weights(ours.WEIGHTS, f"{TIMM_PREFIX}{ours.NAME}")
        load_backbone(body.net, state, f"MODEL.TIMM.WEIGHTS={ours.WEIGHTS}")
    pyramid = cfg.MODEL.FPN
    return FPN(body, levels, pyramid.OUT_CHANNELS, pyramid.NORM, LastLevelMaxPool(), pyramid.FUSE_TYPE)


def _pixels(name: str) -> dict[str, object]:
    """The settings of a network's colours, in Detectron2's range of 0 to 255."""
    setting = f"MODEL.TIMM.NAME={name}"
    check_name(name, setting)
    about = import_timm(setting).get_pretrained_cfg(name)
    mean, deviation = ([round(255 * value, 4) for value in values] for values in (about.mean, about.std))
    return dict(zip(PIXELS, ("RGB", mean, deviation), strict=True))


def _check_pixels(cfg: CfgNode) -> None:
    wanted = _pixels(cfg.MODEL.TIMM.NAME)
    if not all(_same(_get(cfg, key), value) for key, value in wanted.items()):
        values = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        raise UserError(
            f"MODEL.TIMM.NAME={cfg.MODEL.TIMM.NAME} was trained on other pixels than this configuration makes; set "
            f"{values}, or call set_timm_pixels(cfg)"
        )


def _same(found: object, wanted: object) -> bool:
    """Equal, numbers to the digits that people write."""
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return all(abs(mine - theirs) < 0.1 for mine, theirs in zip(found, wanted, strict=True))
    return found == wanted


def _get(cfg: CfgNode, key: str) -> object:
    node: object = cfg
    for name in key.split("."):
        node = node[name]  # type: ignore[index]
    return list(node) if isinstance(node, tuple | list) else node
