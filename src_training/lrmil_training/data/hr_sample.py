"""Sample of patches that is encoded again, to see that features of another program are those of an encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from napari_lrmil.core.encoders import NetworkEncoder
from napari_lrmil.core.errors import BagError
from napari_lrmil.core.features.extraction import PatchSet, embed
from napari_lrmil.core.features.layouts.foreign import ForeignFeatures
from napari_lrmil.core.features.layouts.proof import ProvenPatches
from napari_lrmil.core.slides.slide import Slide

LEAST_COSINE = 0.99  # other ways of reducing a level stay above it
SAMPLED_PATCHES = 4  # of each slide, if nothing else is said


@dataclass(frozen=True)
class SampleCheck:
    """How a sample of each slide is checked.

    Attributes
    ----------
    encoder, name
        The encoder, and its name in messages.
    count
        Patches of a slide.
    patch_px
        Side in pixels of patches whose file does not state it.
    device
        Device of the encoder.
    remedy
        How to name another encoder, or to do without the check.
    """

    encoder: NetworkEncoder
    name: str
    count: int
    patch_px: int
    device: torch.device
    remedy: str

    def cosine(self, slide: Slide, foreign: ForeignFeatures, patches: ProvenPatches) -> tuple[int, float]:
        """Return how many patches of a slide were encoded again, and the mean cosine with their features.

        Raises
        ------
        BagError
            If it is below `LEAST_COSINE`.
        """
        rows = np.unique(np.linspace(0, foreign.shape[0] - 1, min(self.count, foreign.shape[0])).round().astype(int))
        side = patches.patch_px or self.patch_px
        pixels = PatchSet(patches.corners[rows], (patches.side, patches.side), side).read(slide, slice(None))
        encoded = embed(self.encoder, pixels, None, self.device)
        stored = np.concatenate([np.asarray(foreign.rows(slice(row, row + 1)), dtype=np.float32) for row in rows])
        norms = np.linalg.norm(encoded, axis=1) * np.linalg.norm(stored, axis=1)
        cosine = float(np.mean((encoded * stored).sum(axis=1) / np.maximum(norms, 1e-12)))
        if not cosine >= LEAST_COSINE:
            raise BagError(
                foreign.path,
                f"{len(rows)} patches encoded again by {self.name} have a cosine of {cosine:.3f} with these features, "
                f"expected {LEAST_COSINE} or more; they are of another encoder, slide, resolution or order: "
                f"{self.remedy}",
            )
        return len(rows), cosine
