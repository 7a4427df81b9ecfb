"""How pixels are mixed: a new mixer is a file and a line of `MIXERS`."""

from collections.abc import Callable

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.mixers.comixup import CoMixup
from lossmix_det.mixing.mixers.contract import Mixer
from lossmix_det.mixing.mixers.cutmix import CutMix
from lossmix_det.mixing.mixers.mixup import Mixup
from lossmix_det.mixing.mixers.puzzlemix import PuzzleMix
from lossmix_det.mixing.mixers.sage import Sage
from lossmix_det.mixing.mixers.saliencymix import SaliencyMix

MIXERS: dict[str, Callable[[MixingConfig], Mixer]] = {
    "mixup": Mixup,
    "cutmix": CutMix,
    "saliencymix": SaliencyMix,
    "sage": Sage,
    "puzzlemix": PuzzleMix,
    "comixup": CoMixup,
}
