"""Mixing images and deciding what truths a mixed image is taught, and how much of each."""

from lossmix_det.mixing.mixers.mixup import Mix, as_noise, draw_domain_mix, draw_mix, mixup, unmixed
from lossmix_det.mixing.rules import supervise

__all__ = ["Mix", "as_noise", "draw_domain_mix", "draw_mix", "mixup", "supervise", "unmixed"]
