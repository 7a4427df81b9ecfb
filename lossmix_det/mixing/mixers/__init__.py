"""How pixels are mixed: a new mixer is a file and a line of `MIXERS`."""

from collections.abc import Callable

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.mixers.contract import Mixer
from lossmix_det.mixing.mixers.mixup import Mixup

MIXERS: dict[str, Callable[[MixingConfig], Mixer]] = {
    "mixup": Mixup,
}
