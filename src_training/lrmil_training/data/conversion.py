"""Cohort task of ``features --convert``: features of another program, proven and written in another layout."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import torch

from lrmil_training.data.features import cached_encoder, require_same_weights, unlabelled_slide
from lrmil_training.data.hr_placement import uncovered_tissue_notice
from lrmil_training.data.hr_sample import SAMPLED_PATCHES, SampleCheck
from napari_lrmil.core.cohort import SlideJob, TaskResult
from napari_lrmil.core.errors import BagError
from napari_lrmil.core.events import Event, Notice, Progress
from napari_lrmil.core.features.bag import BagOrigin
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.features.layouts.find import find_feature_folder
from napari_lrmil.core.features.layouts.foreign import ForeignFeatures
from napari_lrmil.core.features.layouts.plain import parse_mapping
from napari_lrmil.core.features.layouts.proof import ProvenPatches, prove_patches
from napari_lrmil.core.features.layouts.steps import typical_step
from napari_lrmil.core.features.layouts.writers import FeatureRows, feature_file, write_in_layout
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.slides.slide import Slide

REMEDY = "name the encoder that made them by --encoder, or leave --encoder out"
IN_CONVERSION = "have none in the converted file either"
LR_FACTOR = 4  # of a training's usual resolutions, by which its HR patches of tissue are chosen


@dataclass(frozen=True)
class ConvertTask:
    """Convert the features of one slide. The files of the other program are read only.

    Attributes
    ----------
    source, mapping
        Folder of the features, and what its files do not say.
    folder
        Folder of the new files.
    layout
        Their layout.
    encoder, encoder_sha256
        Name for `find_encoder` of the encoder that made them, of which a sample is encoded again, and the hash that its
        weights must have; empty: no patch is encoded.
    device
        Device of the encoder.
    """

    shared_imports: ClassVar = (__name__,)
    source: Path
    mapping: tuple[str, ...]
    folder: Path
    layout: str = "trident"
    encoder: str = ""
    encoder_sha256: str = ""
    device: str = "cpu"

    def prepare(self, threads: int) -> None:
        """Set the number of threads that torch uses in this process."""
        torch.set_num_threads(threads)

    def __call__(self, work: SlideJob) -> Generator[Event, None, TaskResult]:
        """Read, prove and write the features of a slide.

        Raises
        ------
        BagError
            If the features cannot be used, or a file of another program is in the way.
        """
        row = unlabelled_slide(work)
        foreign = find_feature_folder(self.source, parse_mapping(self.mapping)).open(row.name)
        with row.open() as slide:
            yield from (Notice(text, row.name) for text in slide.warnings)
            patches = prove_patches(foreign, slide)
            origin = origin_of_foreign(foreign, patches, slide)
            if notice := uncovered_tissue_notice(patches, slide, plan_of_foreign(origin), IN_CONVERSION):
                yield Notice(notice, row.name)
            if self.encoder:
                yield Notice(self._check_sample(slide, foreign, patches), row.name)
        yield from (Notice(text, row.name) for text in patches.notices)
        yield Progress("writing", 0, 1, "files")
        rows = FeatureRows(origin, patches.corners, foreign.shape[1], foreign.chunks, _overlap(foreign, patches))
        path = feature_file(self.folder, self.layout, origin, rows.overlap)
        if any(path.resolve() == part.resolve() for part in foreign.parts):
            raise BagError(path, "the file would be written over itself; choose another --out")
        write_in_layout(path, self.layout, rows)
        return TaskResult(
            f"features of {format_count(foreign.shape[0], 'patch', 'patches')} from {foreign.layout}", path
        )

    def _check_sample(self, slide: Slide, foreign: ForeignFeatures, patches: ProvenPatches) -> str:
        """Encode a sample of patches again; return a sentence, or raise as `SampleCheck.cosine` does."""
        loaded, device = cached_encoder(self.encoder), resolve_device(self.device)
        require_same_weights(loaded, self.encoder, self.encoder_sha256)
        name, dim = loaded.spec.full_name, loaded.encoder.dim
        if foreign.shape[1] != dim:
            raise BagError(foreign.path, f"{foreign.shape[1]} dimensions, and the encoder {name} has {dim}; {REMEDY}")
        px = patches.patch_px or patches.side
        check = SampleCheck(loaded.encoder.to(device), name, SAMPLED_PATCHES, px, torch.device(device), REMEDY)
        count, cosine = check.cosine(slide, foreign, patches)
        return f"{count} patches encoded again by {name} agree (cosine {cosine:.4f})"


def origin_of_foreign(foreign: ForeignFeatures, patches: ProvenPatches, slide: Slide) -> BagOrigin:
    """Return slide, patches and encoder of features of another program.

    Raises
    ------
    BagError
        If nothing says how many pixels the patches had.
    """
    if patches.mpp is None or patches.patch_px is None:
        raise BagError(
            foreign.path,
            "the file does not state how many pixels the encoded patches had; name them by --hr-mapping patch_px=256",
        )
    with_hash = foreign.fingerprint is not None  # a file of this program
    return BagOrigin(
        slide=slide.name,
        slide_fingerprint=slide.fingerprint,
        mpp0=slide.mpp.mean,
        target_mpp=patches.mpp,
        patch_px=patches.patch_px,
        patch_level0=(patches.side, patches.side),
        origin_level0=(int(patches.corners[:, 0].min()), int(patches.corners[:, 1].min())),
        level0_size=(slide.width, slide.height),
        encoder=foreign.encoder or "unknown",
        encoder_sha256=_stored_hash(foreign.path) if with_hash else "",
    )


def plan_of_foreign(origin: BagOrigin) -> PatchPlan:
    """Return resolutions and patch sizes with the stored patches as HR patches."""
    return PatchPlan(origin.target_mpp, LR_FACTOR * origin.target_mpp, origin.patch_px, origin.patch_px)


def _overlap(foreign: ForeignFeatures, patches: ProvenPatches) -> float:
    """Return the overlap of neighbours as a share of the side: as stated, or by the step of the coordinates."""
    if foreign.overlap is not None:
        return foreign.overlap
    step = typical_step(patches.corners.astype(np.float64))
    return 0.0 if step is None else max(0.0, 1 - step / patches.side)


def _stored_hash(path: Path) -> str:
    with h5py.File(path, "r") as file:
        return str(file["coords"].attrs.get("encoder_sha256", ""))
