"""Baseline pipeline of the benchmark: patches through OpenSlide and PIL, ResNet-50 in eager float32 torch.

Only its cost is measured. The weights are random, because trained ones take the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_lrmil.core.encoders import EncoderOutput
from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.features.extraction import PatchSet
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.slides.openslide_handle import slide_file
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    from openslide import OpenSlide

RESNET_DIM = 2048
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, the usual normalisation of such pipelines


class ResNetEmbedder(nn.Module):
    """ResNet-50 (He et al. 2016, arXiv 1512.03385) up to its pooling; (B, 3, h, w) uint8 in, (B, 2048) out."""

    def __init__(self) -> None:
        from transformers import ResNetConfig, ResNetModel

        super().__init__()
        self.network = ResNetModel(ResNetConfig())  # the default configuration is ResNet-50
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a batch; raise `ValueError` if `layers` is not empty, because there are no maps."""
        if layers:
            raise ValueError("no layers of ResNet-50 are offered")
        scaled = pixels.float() / 255
        mean, deviation = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
        return EncoderOutput(self.network((scaled - mean) / deviation).pooler_output.flatten(1), {})


class PilReader:
    """Reader of most pipelines: one region of the best level per patch, RGBA to RGB, resized by PIL.

    Parameters
    ----------
    slide
        Slide to read; its file is opened a second time.
    patches
        Patches to read. A patch that OpenSlide cannot read is read as in `predict`.

    Raises
    ------
    SlideError
        If OpenSlide does not open the slide.
    """

    def __init__(self, slide: Slide, patches: PatchSet) -> None:
        self._slide, self._patches = slide, patches
        self._handle = self._open()
        downsample = patches.size_level0[0] / patches.patch_px
        # The tolerance keeps a level whose stated downsample is larger by rounding only.
        self._level = self._handle.get_best_level_for_downsample(downsample * (1 + 1e-3))
        level_downsample: float = self._handle.level_downsamples[self._level]
        self._size = tuple(max(1, round(side / level_downsample)) for side in patches.size_level0)
        self.pixels_decoded = 0

    def _open(self) -> OpenSlide:
        import openslide

        try:
            return openslide.OpenSlide(slide_file(self._slide.path))
        except openslide.OpenSlideError as error:
            reason = f"the baseline reads with OpenSlide, which cannot open it ({error}); use --no-baseline"
            raise SlideError(self._slide.path, reason) from error

    def read(self, rows: slice) -> NDArray[np.uint8]:
        """Return the (B, patch_px, patch_px, 3) pixels of a range of patches."""
        return np.stack([self._read_patch(x, y) for x, y in self._patches.corners[rows].tolist()])

    def _read_patch(self, x: int, y: int) -> NDArray[np.uint8]:
        from openslide import OpenSlideError

        try:
            region: Any = self._handle.read_region((x, y), self._level, self._size).convert("RGB")
        except OpenSlideError:  # a damaged tile; the handle fails at every later read
            self._handle.close()
            self._handle = self._open()
            corner: Int64 = np.array([[x, y]], np.int64)
            (pixels,) = self._slide.read_patches(corner, self._patches.size_level0, self._patches.patch_px)
            return np.asarray(pixels)
        self.pixels_decoded += region.width * region.height
        side = self._patches.patch_px
        if region.size != (side, side):
            region = region.resize((side, side))
        return np.asarray(region)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()
