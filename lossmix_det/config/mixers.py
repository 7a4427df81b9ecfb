"""Settings that one mixer alone reads."""

from __future__ import annotations

from dataclasses import dataclass

from lossmix_det.config.fields import Settings, number


@dataclass
class PuzzleConfig(Settings):
    """The energy of PuzzleMix's masks, and its transport of blocks; the defaults are those published."""

    beta: float = number(1.2, 0, 1e3)  # neighbouring blocks are shown alike
    gamma: float = number(0.5, 0, 1)  # pixels on both sides of a border between blocks are alike; a share of beta
    eta: float = number(0.2, 0, 1e3)  # the mask shows lam of the image
    labels: int = number(3, 2, 8)  # different shares that a block may have, from 0 to 1
    transport: bool = True  # blocks of each image are moved, and torn boxes follow them, so that less is hidden
    t_eps: float = number(0.8, 0, 1e3)  # cost of moving a block as far as the longer side is long


@dataclass
class CoMixupConfig(Settings):
    """The energy of Co-Mixup's masks; but for `partners`, the defaults are those published."""

    partners: int = number(2, 1, 8)  # of each image, that its blocks may show instead
    blocks: int = number(4, 1, 16)  # along the longer side of each image
    alpha: float = number(2.0, 1e-3, 1e3)  # shares of an image and its partners ~ Dirichlet(alpha)
    eta: float = number(0.05, 0, 1e3)  # the masks show these shares
    beta: float = number(0.32, 0, 1e3)  # neighbouring blocks show the same image
    gamma: float = number(1.0, 0, 1e3)  # mixed images do not show the same image
    thres: float = number(0.83, 0, 1e3)  # unless the others together show less than this share of it
    omega: float = number(0.001, 0, 1)  # images whose most salient places are apart are shown together
    iterations: int = number(4, 1, 100)  # rounds of improving each mask in turn
