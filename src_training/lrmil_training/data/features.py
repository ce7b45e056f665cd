"""Patch features of a cohort: one file per slide, extracted once, and again only if slide, encoder or grid changed."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.data.feature_store import StoredRows
from napari_lrmil.core.cohort import SlideJob, TaskResult
from napari_lrmil.core.encoders import ACCEPTED_ENCODERS, AlignedEncoder, LoadedEncoder, resolve_encoder
from napari_lrmil.core.errors import BagError, BundleError, CohortError, DiskFullError, EncoderError, LrmilError
from napari_lrmil.core.events import Event, Failed, Notice, Progress, StageDone
from napari_lrmil.core.features.bag import (
    Bag,
    BagOrigin,
    array_location,
    is_readable_bag,
    read_bag,
    read_origin,
    write_bag,
)
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.features.extraction import PatchSet, extract_features
from napari_lrmil.core.features.layouts.writers import FeatureRows, feature_file, write_in_layout, write_patch_file
from napari_lrmil.core.features.torch_encoding import Embedder
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import NestedGrid, find_tissue_grid, require_resolution
from napari_lrmil.core.patching.missing_tissue import MOST_SHARE, MissingTilesCheck
from napari_lrmil.core.patching.stain import StainTransform
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.slides.slide import Slide


@dataclass(frozen=True)
class FeatureRequest:
    """Specification of features: encoder, patches and folder.

    Attributes
    ----------
    encoder
        The network.
    encoder_name, encoder_sha256
        Its name and the hash of its weights, as the feature files record them.
    plan
        The two resolutions.
    high
        HR patches if true, LR patches otherwise.
    folder
        Folder of the files, in TRIDENT's layout.
    layers
        Layers whose pooled embeddings are stored too.
    input_px
        Side in pixels to which LR patches are enlarged; None leaves them as read.
    allow_missing
        Whether slides are used of which more than a third of the tissue is missing.
    tissue
        Parameters of the tissue mask. They are not part of the files: features of other parameters need another folder.
    """

    encoder: Embedder
    encoder_name: str
    encoder_sha256: str
    plan: PatchPlan
    high: bool
    folder: Path
    layers: tuple[str, ...] = ()
    input_px: int | None = None
    allow_missing: bool = False
    tissue: TissueConfig = field(default_factory=TissueConfig)

    @property
    def mpp(self) -> float:
        """µm per pixel of the patches."""
        return self.plan.hr_mpp if self.high else self.plan.lr_mpp

    @property
    def patch_px(self) -> int:
        """Side of the patches in pixels."""
        return self.plan.hr_patch_px if self.high else self.plan.lr_patch_px

    def path(self, slide: CohortSlide) -> Path:
        """Return the feature file of a slide."""
        grid = f"{10 / self.mpp:g}x_{self.patch_px}px_0px_overlap"
        return self.folder / grid / f"features_{self.encoder_name}" / f"{slide.name}.h5"


def find_encoder(name: str) -> LoadedEncoder:
    """Return a frozen HR encoder by file, folder or hub id, or the teacher's encoder of a bundle by the bundle's name.

    Raises
    ------
    LrmilError
        If there is no encoder of that name, or it cannot be used.
    """
    encoder = resolve_encoder(name)
    if encoder is not None:
        return encoder
    try:
        bundle = Bundle(name)
    except BundleError as error:
        raise EncoderError(f"no encoder '{name}'; expected {ACCEPTED_ENCODERS}") from error
    return LoadedEncoder(bundle.teacher.encoder, bundle.card.hashes["teacher.safetensors"])


def make_features(
    slides: Sequence[CohortSlide],
    request: FeatureRequest,
    device: str | torch.device,
    grids: Mapping[str, NestedGrid] | None = None,
) -> Generator[Event, None, dict[str, str]]:
    """Extract the missing features and return slide name -> reason for the slides that failed.

    A slide that fails does not stop the others; a full disk stops all.

    Parameters
    ----------
    slides, request
        Slides, and which features to extract.
    device
        Device of the encoder.
    grids
        Slide name -> nested grids, if they are known. Otherwise they are derived from the tissue mask.

    Raises
    ------
    BagError
        If a file in the way has another encoder or resolution, or is of another program: it may be somebody's work.
    """
    # All files are checked before the first slide is read: a refusal after hours would waste them.
    for row in slides:
        refuse_foreign_features(request.path(row), request)
    failures: dict[str, str] = {}
    stage = "HR features" if request.high else "LR features"
    for count, row in enumerate(slides):
        yield Progress(stage, count, len(slides), "slides")
        try:
            yield from _make_slide_features(row, request, device, (grids or {}).get(row.name))
        except DiskFullError:  # an LrmilError too, but every further slide would fail in the same way
            raise
        except LrmilError as error:
            failures[row.name] = str(error).removeprefix(f"{row.path}: ")  # others may see the table
            yield Failed(str(error), row.name, "features", error)
    yield Progress(stage, len(slides), len(slides), "slides")
    return failures


def make_lr_features(
    cohort: Cohort,
    request: FeatureRequest,
    encoder: AlignedEncoder,
    device: str | torch.device,
    grids: Mapping[str, NestedGrid],
) -> Generator[Event, None, dict[str, StoredRows]]:
    """Extract the missing LR features of slides that have HR features, and return them by slide.

    LR patches are the parents of the stored HR patches, so that every LR row stands for the children that the teacher
    saw. The stored HR patches may be those of another ratio or of an earlier version.

    Raises
    ------
    CohortError
        If a slide that has HR features cannot be read any more.
    """
    encoder.to(device)
    failures = yield from make_features(cohort.slides, request, device, grids)
    encoder.cpu()  # the GPU's memory is needed by the next fit
    if failures:
        slide, reason = next(iter(failures.items()))
        raise CohortError(cohort.path, f"slide {slide} gave HR but no LR features ({reason})")
    return {s.name: StoredRows.of(request.path(s)) for s in cohort.slides}


def _make_slide_features(
    row: CohortSlide, request: FeatureRequest, device: str | torch.device, stored_grid: NestedGrid | None
) -> Generator[Event, None, None]:
    began = time.process_time()  # before opening, because the cost of a slide includes it
    with row.open() as slide:
        if is_up_to_date(request.path(row), slide, request, stored_grid):
            return
        yield from (Notice(text, row.name) for text in slide.warnings)
        if request.high:
            require_resolution(slide, request.plan.hr_mpp, "teacher (HR)")
        # The slide of a stored grid was checked; a tile that is damaged at this resolution alone is an error.
        grid, missing = (stored_grid, None) if stored_grid else (yield from _find_checked_grid(slide, request))
        bag = yield from build_bag(slide, grid, request, device, stage=row.name, began=began, stain=row.stain)
        write_bag(request.path(row), (yield from _with_missing_tissue(bag, missing)) if missing else bag)


def _find_checked_grid(
    slide: Slide, request: FeatureRequest
) -> Generator[Event, None, tuple[NestedGrid, MissingTilesCheck]]:
    """Return the grids of a slide, and the check of its missing tiles; it is to be repeated after the patches are read.

    Raises
    ------
    MissingTilesError
        If too much of the tissue is missing.
    """
    plan = request.plan
    slide.count_damaged_tiles()
    tissue_grid = find_tissue_grid(slide, plan, request.tissue)
    lattice = tissue_grid.grid.lattice
    sizes = [(lattice.lr_cell, plan.lr_patch_px), *([(lattice.cell, plan.hr_patch_px)] if request.high else [])]
    missing = MissingTilesCheck(slide, tissue_grid.tissue, sizes, allow=request.allow_missing)
    yield from missing.notices()
    return tissue_grid.grid, missing


def _with_missing_tissue(bag: Bag, missing: MissingTilesCheck) -> Generator[Event, None, Bag]:
    """Check the tiles again, now that the patches are read, and return the bag with the share of missing tissue."""
    yield from missing.notices()
    return replace(bag, origin=replace(bag.origin, missing_tissue_share=missing.tiles.tissue_share))


def build_bag(
    slide: Slide,
    grid: NestedGrid,
    request: FeatureRequest,
    device: str | torch.device,
    *,
    stage: str,
    began: float,
    stain: StainTransform | None = None,
) -> Generator[Event, None, Bag]:
    """Return the features of a slide's patches.

    Parameters
    ----------
    slide, grid
        The open slide and its nested grids.
    request, device
        Which features, and the device of the encoder.
    stage
        Name of the stage in events.
    began
        `time.process_time` before the slide was opened, so that the recorded CPU-seconds include tissue and opening.
    stain
        Colour transform of the slide.
    """
    patches = replace(requested_patches(grid, request), stain=stain)
    embedded = yield from extract_features(
        slide, patches, request.encoder, device=device, layers=request.layers, stage=stage
    )
    origin = replace(
        make_bag_origin(slide, patches, grid, request),
        pixels_decoded=slide.pixels_decoded,
        cpu_seconds=time.process_time() - began,
    )
    return Bag(embedded.features, patches.corners, origin, embedded.layers)


def refuse_foreign_features(path: Path, request: FeatureRequest) -> None:
    """Raise `BagError` if a readable file of other features is in the way. A broken file is written again."""
    if not path.exists() or not is_readable_bag(path):
        return
    advice = "use another folder for features, or move the file away"
    try:
        o = read_origin(path)[0]
    except BagError as error:
        raise BagError(
            path, f"another program wrote these features, and they would be overwritten; {advice}"
        ) from error
    if o.encoder_sha256 != request.encoder_sha256:
        raise BagError(
            path,
            f"features of encoder {o.encoder} ({o.encoder_sha256[:8]}), expected {request.encoder_name} "
            f"({request.encoder_sha256[:8]}); {advice}",
        )
    # Resolutions are compared as stored floats; the tolerance only covers rounding in the file.
    if abs(o.target_mpp - request.mpp) > 1e-9 or o.patch_px != request.patch_px:
        stored, expected = f"{o.patch_px} px of {o.target_mpp:g} µm", f"{request.patch_px} px of {request.mpp:g} µm"
        raise BagError(path, f"features of patches of {stored}, expected {expected}; {advice}")


def requested_patches(grid: NestedGrid, request: FeatureRequest) -> PatchSet:
    """Return the HR or LR patches of a grid, as the request asks."""
    if request.high:
        return PatchSet(grid.hr_corners, grid.lattice.cell, request.patch_px)
    return lr_patches(grid, request.plan, request.input_px)


def lr_patches(grid: NestedGrid, plan: PatchPlan, input_px: int | None) -> PatchSet:
    """Return the LR patches of a slide."""
    return PatchSet(grid.lr_corners, grid.lattice.lr_cell, plan.lr_patch_px, input_px)


def make_bag_origin(slide: Slide, patches: PatchSet, grid: NestedGrid, request: FeatureRequest) -> BagOrigin:
    """Return the origin of a bag: slide, patches and encoder, as its file records them."""
    return BagOrigin(
        slide=slide.name,
        slide_fingerprint=slide.fingerprint,
        mpp0=slide.mpp.mean,
        target_mpp=request.mpp,
        patch_px=request.patch_px,
        patch_level0=patches.size_level0,
        origin_level0=grid.lattice.origin,
        level0_size=(slide.width, slide.height),
        encoder=request.encoder_name,
        encoder_sha256=request.encoder_sha256,
    )


def is_up_to_date(path: Path, slide: Slide, request: FeatureRequest, stored_grid: NestedGrid | None = None) -> bool:
    """Return whether a complete feature file of the same slide, and of the patches of `stored_grid`, exists.

    Encoder and resolution are checked by `refuse_foreign_features`.
    """
    if not path.exists():
        return False
    try:
        o, coords = read_origin(path)
        arrays = [array_location(path, name) for name in ("features", *(f"layers/{name}" for name in request.layers))]
    except BagError:
        return False  # broken, or without a layer: the whole file is written again
    # The mpp can be corrected in the cohort table without a change of the slide file.
    same_slide = o.slide_fingerprint == slide.fingerprint and abs(o.mpp0 - slide.mpp.mean) < 1e-9
    same_patches = stored_grid is None or np.array_equal(coords, requested_patches(stored_grid, request).corners)
    is_allowed = request.allow_missing or o.missing_tissue_share <= MOST_SHARE  # else an earlier call allowed it
    return bool(arrays) and same_slide and same_patches and is_allowed


@dataclass(frozen=True)
class FeatureTask:
    """Cohort task of the command ``features``: extract the features of one slide and write its file.

    Attributes
    ----------
    encoder, encoder_sha256
        Its name for `find_encoder`, and the hash that its weights must have.
    mpp, patch_px
        µm per pixel of the patches, and their side in those pixels.
    folder
        Folder of the files, in TRIDENT's layout.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``, resolved on the machine of the worker.
    allow_missing
        Whether slides are used of which more than a third of the tissue is missing.
    layout
        ``trident``, or a further layout in which the features are written too, ``clam`` or ``stamp``.
    exclude_artefacts
        Whether pen, air bubbles and blur are left out. Such features are of other patches, so `folder` must hold
        no others.
    """

    shared_imports: ClassVar = (__name__,)
    encoder: str
    encoder_sha256: str
    mpp: float
    patch_px: int
    folder: Path
    device: str = "auto"
    allow_missing: bool = False
    layout: str = "trident"
    exclude_artefacts: bool = False

    def prepare(self, threads: int) -> None:
        """Set the number of threads that torch uses in this process."""
        torch.set_num_threads(threads)

    def request(self, loaded: LoadedEncoder) -> FeatureRequest:
        """Return the request for a loaded encoder."""
        # One resolution only, so HR and LR patches are the same and the grid is not nested.
        plan = PatchPlan(hr_mpp=self.mpp, lr_mpp=self.mpp, hr_patch_px=self.patch_px, lr_patch_px=self.patch_px)
        return FeatureRequest(
            loaded.encoder,
            loaded.spec.full_name,
            loaded.sha256,
            plan,
            high=False,
            folder=self.folder,
            allow_missing=self.allow_missing,
            tissue=TissueConfig(exclude_artefacts=self.exclude_artefacts),
        )

    def __call__(self, work: SlideJob) -> Generator[Event, None, TaskResult]:
        """Extract the features of a slide, unless its file is up to date, and write the file."""
        # Each worker loads the encoder by name, so the name could mean another file by now: the hash decides.
        loaded, row, device = cached_encoder(self.encoder), unlabelled_slide(work), resolve_device(self.device)
        require_same_weights(loaded, self.encoder, self.encoder_sha256)
        loaded.encoder.to(device)
        request, began = self.request(loaded), time.process_time()
        path = request.path(row)
        with row.open() as slide:
            if is_up_to_date(path, slide, request):
                return TaskResult("features (already there)", self._write_others(path), is_reused=True)
            yield from (Notice(text, row.name) for text in slide.warnings)
            yield Progress("tissue", 0, 1, "slide")
            tissue_began = time.perf_counter()
            grid, missing = yield from _find_checked_grid(slide, request)
            yield StageDone("tissue", time.perf_counter() - tissue_began)
            bag = yield from build_bag(slide, grid, request, device, stage="features", began=began)
            bag = yield from _with_missing_tissue(bag, missing)
            yield Progress("writing", 0, 1, "files")
            write_bag(path, bag)
            return TaskResult(
                f"features of {format_count(len(bag.coords), 'patch', 'patches')}", self._write_others(path)
            )

    def _write_others(self, path: Path) -> Path:
        """Write what other programs read: the file of coordinates, and another layout; return the features' file."""
        bag = read_bag(path)
        write_patch_file(path, bag.origin, bag.coords)
        if self.layout == "trident":
            return path
        other = feature_file(self.folder / self.layout, self.layout, bag.origin)
        return write_in_layout(other, self.layout, FeatureRows.of_bag(bag))[0]


def require_same_weights(loaded: LoadedEncoder, name: str, sha256: str) -> None:
    """Raise `EncoderError` if the encoder that a worker loaded by name is not the one that the call began with."""
    if loaded.sha256 != sha256:
        raise EncoderError(f"{name} is not the encoder that the work began with; start the call again")


def unlabelled_slide(work: SlideJob) -> CohortSlide:
    """Return a slide as a cohort row without patient and label, which features do not need."""
    return CohortSlide(work.path, patient="", label="", split="", mpp=work.mpp)


@lru_cache(maxsize=1)
def cached_encoder(name: str) -> LoadedEncoder:
    """Return `find_encoder` of a name, loaded once per process."""
    return find_encoder(name)
