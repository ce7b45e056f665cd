"""Features of a slide's patches by one encoder of a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from napari_lrmil.core.encoders import module_sha256
from napari_lrmil.core.events import Event, Finished, Notice
from napari_lrmil.core.features.bag import Bag, BagOrigin
from napari_lrmil.core.features.extraction import extract_features
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.inference.network_input import NetworkInput, student_input, teacher_input
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import NestedGrid, find_tissue_grid, require_resolution
from napari_lrmil.core.patching.missing_tissue import MissingTilesCheck
from napari_lrmil.core.slides.slide import Slide


def extract_bag(
    slide: Slide, bundle: Bundle, network: str, device: str | torch.device, *, allow_missing: bool = False
) -> Iterator[Event]:
    """Yield `Notice` and `Progress`, and last `Finished` with the `Bag` of a whole slide.

    The encoder runs in torch, in float32, so that features do not depend on the machine's runtime.

    Parameters
    ----------
    network
        ``student`` or ``teacher``.
    allow_missing
        Extract features even if more than a third of the tissue is missing.

    Raises
    ------
    LrmilError
        If the slide is too coarse for the network, has no tissue or cannot be read, or the bundle lacks the network.
    """
    began, decoded = time.process_time(), slide.pixels_decoded
    if network == "teacher":
        bundle.require_teacher()
        require_resolution(slide, bundle.card.hr_mpp, "teacher (HR)")
        # Terms of use come before the weights are fetched, which happens on access to `bundle.teacher`.
        yield from (Notice(terms) for terms in filter(None, [bundle.teacher_notice]))
    yield from (Notice(text, slide.name) for text in slide.warnings)
    slide.count_damaged_tiles()
    tissue_grid = find_tissue_grid(slide, bundle.card.plan, bundle.card.tissue)
    grid = tissue_grid.grid
    read = (teacher_input if network == "teacher" else student_input)(bundle.card, grid)
    missing = MissingTilesCheck(slide, tissue_grid.tissue, [read.patches.patch_size], allow=allow_missing)
    yield from missing.notices()
    encoder = (bundle.teacher if network == "teacher" else bundle.student).encoder.to(device)
    batch = default_batch_size(read.patches.side)
    embeddings = yield from extract_features(slide, read.patches, encoder, device=device, stage=read.stage, batch=batch)
    yield from missing.notices()
    pixels, seconds = slide.pixels_decoded - decoded, time.process_time() - began
    origin = _bag_origin(slide, grid, read, f"{bundle.name} {network}", module_sha256(encoder), pixels, seconds)
    origin = replace(origin, missing_tissue_share=missing.tiles.tissue_share)
    yield Finished(Bag(embeddings.features, read.patches.corners, origin))


def _bag_origin(
    slide: Slide, grid: NestedGrid, read: NetworkInput, encoder: str, sha256: str, pixels: int, cpu_seconds: float
) -> BagOrigin:
    """Return the facts about slide, patches and encoder that are stored with the features."""
    return BagOrigin(
        slide=slide.name,
        slide_fingerprint=slide.fingerprint,
        mpp0=slide.mpp.mean,
        target_mpp=read.target_mpp,
        patch_px=read.patches.patch_px,
        patch_level0=read.patches.size_level0,
        origin_level0=grid.lattice.origin,
        level0_size=(slide.width, slide.height),
        encoder=encoder,
        encoder_sha256=sha256,
        pixels_decoded=pixels,
        cpu_seconds=cpu_seconds,
    )
