"""Normalisation layers by the name of `model.norm`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups (Wu & He, ECCV 2018), whose statistics do not depend on the other images of the batch."""
    return nn.GroupNorm(min(32, channels), channels)


# The classes of each, torchvision's, torch's and timm's, by their names, so that timm need not be there. Of a network
# with several, the first is told, because that is the one which can be chosen.
KINDS = {
    "frozen": {"FrozenBatchNorm2d", "FrozenBatchNormAct2d"},
    "batch": {"BatchNorm2d"},
    "group": {"GroupNorm"},
    "layer": {"LayerNorm"},
}
NORMS = {"frozen": FrozenBatchNorm2d, "group": group_norm, "batch": nn.BatchNorm2d}


def norm_of(model: nn.Module) -> str:
    """The norm that a model was built with, by its name in the configuration; ``layer`` or ``none`` if it has none."""
    classes = {kind.__name__ for part in model.modules() for kind in type(part).__mro__}
    return next((name for name, kinds in KINDS.items() if kinds & classes), "none")


def resolve(norm: str, state: dict[str, Tensor] | None, otherwise: str) -> str:
    """The norm to build with.

    Args:
        norm: of `NORMS`, or ``auto``: frozen for weights that hold batch statistics, else one that trains from scratch.
        state: the weights that will be loaded, if any.
        otherwise: the norm that trains this network from scratch.
    """
    if norm in NORMS:
        return norm
    holds_statistics = state is not None and any(name.endswith("running_mean") for name in state)
    return "frozen" if holds_statistics else otherwise


def thaw_norms(module: nn.Module) -> None:
    """Replace every frozen norm below a module by a BatchNorm that learns."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm2d):
            setattr(module, name, nn.BatchNorm2d(len(child.weight), eps=child.eps))
        else:
            thaw_norms(child)


def rest_frozen_norms(module: nn.Module) -> None:
    """Put every BatchNorm whose parameters are frozen into evaluation mode, so that its statistics stay as they are."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.affine and not part.weight.requires_grad:
            part.eval()


class KeepsFrozenStatistics(nn.Module):
    """A module whose norms keep their statistics in training where their parameters do not learn."""

    def train(self, mode: bool = True) -> KeepsFrozenStatistics:
        """As any module, but for these norms."""
        super().train(mode)
        rest_frozen_norms(self)
        return self


def freeze_norms(module: nn.Module) -> None:
    """Replace every BatchNorm below a module by a frozen one with the same parameters and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, frozen)
        else:
            freeze_norms(child)
