"""What all our detectors share: images pass through the network canvas by canvas, and features may be mixed within."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lossmix_det.engines.contract import Detector, Encoding
from lossmix_det.engines.feature_mixing import FeatureMix, MixingPoints
from lossmix_det.structures import ImageBatch, Size


class CanvasDetector(Detector):
    """Normalise, run the backbone, encode its levels; an engine says how each is done, and what an encoding is."""

    @abstractmethod
    def normalise(self, images: ImageBatch) -> Any:
        """The images of one canvas as the engine's backbone takes them."""

    @abstractmethod
    def resized(self, inputs: Any, sizes: Sequence[Size]) -> Any:
        """What `normalise` gave, said to hold images of these sizes on the same canvas; their pixels do not matter."""

    @abstractmethod
    def levels_of(self, inputs: Any) -> dict[str, Tensor]:
        """Levels (b, C, h, w) of the backbone by name."""

    @abstractmethod
    def encode_levels(self, levels: dict[str, Tensor], inputs: Any) -> Any:
        """What the detector computes of the levels of one canvas before any truth is known."""

    @abstractmethod
    def encoding_of(self, images: ImageBatch, canvases: list[Any]) -> Encoding:
        """The encoding of a batch, given what `encode_levels` gave for each of its canvases."""

    @abstractmethod
    def mixing_points(self) -> MixingPoints:
        """Where features can be mixed."""

    def encode(self, images: ImageBatch) -> Encoding:
        """As `Detector.encode`: once for each canvas."""
        encoded = []
        for canvas in self.lay_out(images):
            inputs = self.normalise(canvas.images)
            encoded.append(replace(self.encode_levels(self.levels_of(inputs), inputs), indices=canvas.indices))
        return self.encoding_of(images, encoded)

    def stages(self) -> list[str]:
        """As `MixesFeatures.stages`."""
        return self.mixing_points().names

    def encode_mixed(self, images: ImageBatch, mix: FeatureMix) -> Encoding:
        """As `MixesFeatures.encode_mixed`, on one canvas, because features of any two images may meet."""
        inputs = self.normalise(images)
        with self.mixing_points().mixing(mix):
            levels = self.levels_of(inputs)
        encoded = self.encode_levels(levels, self.resized(inputs, mix.sizes))
        return self.encoding_of(mix.images_of(images), [encoded])
