"""Features of a slide as work that travels: open, embed, write; the encoder is loaded once in each process."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lrmil_training.cohort import CohortSlide
from lrmil_training.features import FeatureRequest, find_encoder, is_current, made_bag
from napari_lrmil.core.bag import write_bag
from napari_lrmil.core.cohortwork import SlideWork, Told
from napari_lrmil.core.embed import resolve_device
from napari_lrmil.core.encoders import LoadedEncoder
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.events import Caution, Event, Progress, StageDone
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.grid import grid_of


@dataclass(frozen=True)
class FeatureTask:
    """What is embedded of every slide of a call.

    Attributes
    ----------
    encoder, encoder_sha256
        Its name as `find_encoder` takes it, and the hash that it has to have.
    mpp, patch_px
        µm per pixel of the patches, and their side in those pixels.
    folder
        Where the files go, in TRIDENT's layout.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``, on whatever machine does the work.
    """

    encoder: str
    encoder_sha256: str
    mpp: float
    patch_px: int
    folder: Path
    device: str = "auto"

    def prepare(self, threads: int) -> None:
        """Set the threads of this process's computing."""
        import torch

        torch.set_num_threads(threads)

    def request(self, loaded: LoadedEncoder) -> FeatureRequest:
        """Return what is embedded by an encoder that is loaded."""
        plan = PatchPlan(hr_mpp=self.mpp, lr_mpp=self.mpp, hr_patch_px=self.patch_px, lr_patch_px=self.patch_px)
        return FeatureRequest(loaded.encoder, loaded.spec.name, loaded.sha256, plan, high=False, folder=self.folder)

    def __call__(self, work: SlideWork) -> Generator[Event, None, Told]:
        """Embed a slide and leave its file."""
        loaded, row, device = loaded_encoder(self.encoder), as_row(work), resolve_device(self.device)
        if loaded.sha256 != self.encoder_sha256:
            raise EncoderError(f"{self.encoder} is not the encoder that the work began with; start the call again")
        loaded.encoder.to(device)
        request, began = self.request(loaded), time.process_time()
        path = request.path(row)
        with row.open() as slide:
            if is_current(path, slide, request):
                return Told("features (already there)", path, already=True)
            yield from (Caution(text, row.name) for text in slide.warnings)
            yield Progress("tissue", 0, 1, "slide")
            at = time.perf_counter()
            grid = grid_of(slide, request.plan)
            yield StageDone("tissue", time.perf_counter() - at)
            bag = yield from made_bag(slide, grid, request, device, stage="features", began=began)
            yield Progress("writing", 0, 1, "files")
            write_bag(path, bag)
        return Told(f"features of {len(bag.coords)} patches", path)


def as_row(work: SlideWork) -> CohortSlide:
    """Return a slide as a row without patient and label, for which features do not ask."""
    return CohortSlide(work.path, patient="", label="", split="", mpp=work.mpp)


@lru_cache(maxsize=1)
def loaded_encoder(name: str) -> LoadedEncoder:
    """Return an encoder, loaded once in each process; see `find_encoder`."""
    return find_encoder(name)
