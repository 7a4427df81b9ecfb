"""How pixels are mixed: a new mixer is a file and a line of `MIXERS`."""

from collections.abc import Callable

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.mixers.classmix import ClassMix
from lossmix_det.mixing.mixers.comixup import CoMixup
from lossmix_det.mixing.mixers.confmix import ConfMix
from lossmix_det.mixing.mixers.contract import Choice, Mixer, MixesObjects
from lossmix_det.mixing.mixers.cutmix import CutMix
from lossmix_det.mixing.mixers.fmix import FMix
from lossmix_det.mixing.mixers.manifold import Manifold
from lossmix_det.mixing.mixers.mixup import Mixup
from lossmix_det.mixing.mixers.mosaic import Mosaic
from lossmix_det.mixing.mixers.puzzlemix import PuzzleMix
from lossmix_det.mixing.mixers.sage import Sage
from lossmix_det.mixing.mixers.saliencymix import SaliencyMix

MIXERS: dict[str, Callable[[MixingConfig], Mixer | MixesObjects | Choice]] = {
    "mixup": Mixup,
    "cutmix": CutMix,
    "saliencymix": SaliencyMix,
    "sage": Sage,
    "puzzlemix": PuzzleMix,
    "comixup": CoMixup,
    "manifold": Manifold,
    "classmix": ClassMix,
    "confmix": ConfMix,
    "mosaic": Mosaic,
    "fmix": FMix,
}
