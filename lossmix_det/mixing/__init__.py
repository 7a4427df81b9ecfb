"""Mixing images and deciding what truths a mixed image is taught, and how much of each."""

from lossmix_det.mixing.blend import Mix, blend, mixed_sizes, unmixed
from lossmix_det.mixing.burn_in import BURN_IN_RULES
from lossmix_det.mixing.mixers import MIXERS
from lossmix_det.mixing.mixers.manifold import PIXELS
from lossmix_det.mixing.pairing import AcrossDomains, Among
from lossmix_det.mixing.recipe import Recipe
from lossmix_det.mixing.rules import RULES, supervise
from lossmix_det.mixing.weightings import WEIGHTINGS

__all__ = [
    "BURN_IN_RULES",
    "MIXERS",
    "PIXELS",
    "RULES",
    "WEIGHTINGS",
    "AcrossDomains",
    "Among",
    "Mix",
    "Recipe",
    "blend",
    "mixed_sizes",
    "supervise",
    "unmixed",
]
