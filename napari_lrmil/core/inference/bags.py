"""Features of a slide's patches by one encoder of a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from napari_lrmil.core.encoders import module_sha256
from napari_lrmil.core.events import Event, Finished, Notice
from napari_lrmil.core.features.bag import Bag, BagOrigin
from napari_lrmil.core.features.extraction import extract_features
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.inference.predict import student_input, teacher_input
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import find_tissue_grid, require_resolution
from napari_lrmil.core.slides.slide import Slide


def extract_bag(slide: Slide, bundle: Bundle, network: str, device: torch.device) -> Iterator[Event]:
    """Yield `Notice` and `Progress`, and last `Finished` with the `Bag` of a whole slide.

    The encoder runs in torch, in float32.

    Parameters
    ----------
    slide
        An open slide.
    bundle
        The model, which states resolution, patch size and tissue mask.
    network
        ``student`` or ``teacher``.
    device
        Where to encode.

    Raises
    ------
    LrmilError
        If the slide is too coarse for the network, has no tissue or cannot be read, or the bundle lacks the network.
    """
    began, decoded = time.process_time(), slide.pixels_decoded
    card = bundle.card
    is_teacher = network == "teacher"
    if is_teacher:
        bundle.require_teacher()
        require_resolution(slide, card.hr_mpp, "teacher (HR)")
        yield from (Notice(terms) for terms in filter(None, [bundle.teacher_notice]))
    yield from (Notice(text, slide.name) for text in slide.warnings)
    grid = find_tissue_grid(slide, card.plan, card.tissue).grid
    reads = (teacher_input if is_teacher else student_input)(card, grid)
    encoder = (bundle.teacher if is_teacher else bundle.student).encoder.to(device)
    embeddings = yield from extract_features(
        slide,
        reads.patches,
        encoder,
        device=device,
        stage=reads.stage,
        batch=default_batch_size(reads.patches.side),
    )
    origin = BagOrigin(
        slide=slide.name,
        slide_fingerprint=slide.fingerprint,
        mpp0=slide.mpp.mean,
        target_mpp=reads.target_mpp,
        patch_px=reads.patches.patch_px,
        patch_level0=reads.patches.size_level0,
        origin_level0=grid.lattice.origin,
        level0_size=(slide.width, slide.height),
        encoder=f"{bundle.name} {network}",
        encoder_sha256=module_sha256(encoder),
        pixels_decoded=slide.pixels_decoded - decoded,
        cpu_seconds=time.process_time() - began,
    )
    yield Finished(Bag(embeddings.features, reads.patches.corners, origin))
