"""HR features that another program made: proven, checked by encoding a sample again, and taken into the run's folder.

The files of the other program are read and never written. The copy in the run's folder has the rows in reading order,
in one block that training reads row by row, and says which file they are from.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from lrmil_training.config import TrainConfig
from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.data.features import FeatureRequest
from lrmil_training.data.hr_placement import (
    HrPlacement,
    grid_of_features,
    origin_of_placement,
    place_on_slide,
    uncovered_tissue_notice,
    with_source,
)
from lrmil_training.data.hr_sample import SampleCheck
from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.encoders import LoadedEncoder
from napari_lrmil.core.encoders.absent import AbsentEncoder, absent_encoder
from napari_lrmil.core.encoders.spec import ABSENT
from napari_lrmil.core.errors import BagError, CohortError, ConfigError, DiskFullError, LrmilError
from napari_lrmil.core.events import Event, Failed, Notice, Progress
from napari_lrmil.core.features.bag import BagOrigin, coords_attributes, read_origin
from napari_lrmil.core.features.layouts.find import find_feature_folder
from napari_lrmil.core.features.layouts.foreign import FeatureFolder, ForeignFeatures
from napari_lrmil.core.features.layouts.plain import parse_mapping
from napari_lrmil.core.features.layouts.proof import ProvenPatches, prove_patches
from napari_lrmil.core.formatting import format_duration
from napari_lrmil.core.patching.grid import PlacedGrid
from napari_lrmil.core.slides.slide import Slide

STAGE = "HR features"
NO_LAYERS = "hr_features have no layers of the encoder: stage 1 compares embeddings alone (no layer term)"
NOT_AT_HAND = (
    "the encoder of the HR features is not at hand (encoder.teacher=none): no patch is encoded again, so nothing shows "
    "that all features are of one encoder and of these slides; the bundle leaves the teacher out"
)
REMEDY = "name the encoder by --set encoder.teacher=NAME, or skip this check by --set hr_check=0"


@dataclass
class TakenFeatures:
    """Sums over the slides whose features were taken.

    Attributes
    ----------
    slides, patches
        Those that can be used, and of these those that were read now.
    seconds
        Time of reading them.
    encoded, encoding_seconds, cosine
        Patches that were encoded again, the time of it, and the lowest mean cosine of a slide.
    divided
        Slide -> share of the area of HR patches that lies outside of their LR patches, where the grid does not nest.
    mpp
        µm per pixel of the patches of each slide, if stated.
    """

    slides: int = 0
    patches: int = 0
    seconds: float = 0.0
    encoded: int = 0
    encoding_seconds: float = 0.0
    cosine: float = 1.0
    divided: dict[str, float] = field(default_factory=dict)
    mpp: list[float] = field(default_factory=list)


def find_hr_folder(config: TrainConfig) -> FeatureFolder:
    """Return the folder of `TrainConfig.hr_features` with the reader of its layout.

    Raises
    ------
    ConfigError
        If it has no features that can be read.
    """
    assert config.hr_features is not None
    return find_feature_folder(config.hr_features, parse_mapping(config.hr_mapping))


def encoder_of_features(config: TrainConfig) -> LoadedEncoder:
    """Return a stand-in for an encoder that is not at hand, with the width of the features.

    Raises
    ------
    ConfigError
        If no file of the folder can be read.
    """
    folder = find_hr_folder(config)
    for name in folder.files:
        try:
            foreign = folder.open(name)
        except BagError:
            continue  # a single file; it is listed with the slides that failed
        return absent_encoder(foreign.shape[1], foreign.encoder)
    raise ConfigError(f"{folder.path}: none of its {len(folder.files)} files of {folder.layout} can be read")


def check_hr_features(config: TrainConfig, cohort: Cohort, encoder: LoadedEncoder) -> None:
    """Check before any work that a run's HR features are those of its slides and its encoder. Nothing is written.

    Raises
    ------
    ConfigError
        If no file is named as a slide, or the features have other dimensions than the encoder.
    """
    if config.hr_features is None:
        return
    folder = find_hr_folder(config)
    names = [slide.name for slide in cohort.slides]
    present = [name for name in names if name in folder.files]
    if not present:
        raise ConfigError(
            f"{folder.path}: no features of the cohort's slides in this folder of {folder.layout}; slides are named "
            f"{names[0]}, files {next(iter(folder.files), 'nothing')}: the names of both must be equal"
        )
    for name in present:
        try:
            foreign = folder.open(name)
        except BagError:
            continue  # a single file; it is listed with the slides that failed
        require_dimensions(foreign, encoder)
        return


def require_dimensions(foreign: ForeignFeatures, encoder: LoadedEncoder) -> None:
    """Raise `ConfigError` if the features cannot be those of the encoder."""
    dim = encoder.encoder.dim
    if foreign.shape[1] == dim:
        return
    named = f" of {foreign.encoder}" if foreign.encoder else ""
    if isinstance(encoder.encoder, AbsentEncoder):
        raise ConfigError(
            f"{foreign.path}: features{named} of {foreign.shape[1]} dimensions, and another file of the folder has "
            f"{dim}; keep the features of one encoder in a folder"
        )
    raise ConfigError(
        f"{foreign.path}: features{named} of {foreign.shape[1]} dimensions, but the teacher's encoder "
        f"{encoder.spec.full_name} has {dim}; name the encoder that made them: --set encoder.teacher=NAME"
    )


def take_request(config: TrainConfig, request: FeatureRequest) -> FeatureRequest:
    """Return the request for the copies of foreign features: their folder has the source in its name."""
    folder = find_hr_folder(config)
    place = json.dumps([str(folder.path.resolve()), list(config.hr_mapping)])
    name = f"{request.encoder_name}-from-{folder.layout.split()[0].lower()}-{_hash(place.encode())[:8]}"
    return replace(request, encoder_name=name, layers=())


@dataclass(frozen=True)
class HrIntake:
    """Specification of the features that a run takes.

    Attributes
    ----------
    folder, config
        Their folder, and the configuration that names it.
    request
        What `take_request` returns.
    encoder
        The teacher's encoder.
    device
        Device on which a sample of patches is encoded again.
    """

    folder: FeatureFolder
    config: TrainConfig
    request: FeatureRequest
    encoder: LoadedEncoder
    device: torch.device

    @property
    def sampled(self) -> int:
        """Patches of a slide that are encoded again."""
        return 0 if isinstance(self.encoder.encoder, AbsentEncoder) else self.config.hr_check

    def sample_check(self) -> SampleCheck:
        """Return the check of a sample."""
        name, px = self.encoder.spec.full_name, self.request.patch_px
        return SampleCheck(self.encoder.encoder, name, self.sampled, px, self.device, REMEDY)


def take_features(slides: Sequence[CohortSlide], intake: HrIntake) -> Generator[Event, None, dict[str, str]]:
    """Take the features of slides into the run's folder and return slide name -> reason for those that failed."""
    failures, taken = dict[str, str](), TakenFeatures()
    yield from (Notice(text) for text in intake_notices(intake.config))
    for count, row in enumerate(slides):
        yield Progress(STAGE, count, len(slides), "slides")
        try:
            yield from _take_slide(row, intake, taken)
        except DiskFullError:  # every further slide would fail in the same way
            raise
        except LrmilError as error:
            failures[row.name] = str(error).removeprefix(f"{row.path}: ")
            yield Failed(str(error), row.name, "features", error)
    yield Progress(STAGE, len(slides), len(slides), "slides")
    if taken.slides:
        yield from (Notice(text) for text in describe_taken(taken, intake.folder, intake.config))
    return failures


def intake_notices(config: TrainConfig) -> list[str]:
    """Return sentences on what a run does without, because its HR features are given."""
    stage, sentences = config.stage1, list[str]()
    if stage.epochs and stage.lambda_layer and stage.layers:
        sentences.append(NO_LAYERS)
    if config.encoder.teacher == ABSENT:
        sentences.append(NOT_AT_HAND)
    return sentences


def require_taken(slides: Sequence[CohortSlide], failures: Mapping[str, str], folder: FeatureFolder) -> None:
    """Raise `CohortError`, with the reason of one slide, if the features of none could be taken."""
    if len(failures) == len(slides):
        name, reason = next(iter(failures.items()))
        raise CohortError(folder.path, f"the features of no slide can be used; of {name}: {reason}")


def _take_slide(row: CohortSlide, intake: HrIntake, taken: TakenFeatures) -> Generator[Event, None, None]:
    began, path = time.perf_counter(), intake.request.path(row)
    foreign = open_features(row, intake.folder, intake.encoder.encoder.dim)
    with row.open() as slide:
        yield from (Notice(text, row.name) for text in slide.warnings)
        if not _is_taken(path, slide, foreign, intake.sampled):
            yield Progress(row.name, 0, foreign.shape[0], "patches")
            patches = prove_patches(foreign, slide)
            yield from (Notice(text, row.name) for text in patches.notices)
            placement = place_on_slide(patches, slide, intake.request.plan, foreign.path)
            origin = _origin_of(slide, placement, intake.request)
            require_grid(foreign, origin, placement, intake.config)
            if notice := uncovered_tissue_notice(placement, slide, intake.request.plan):
                yield Notice(notice, row.name)
            if intake.sampled:
                _check_sample(slide, foreign, patches, intake, taken)
            write_taken(path, foreign, placement, origin, _describe_source(foreign, intake.sampled))
            taken.mpp += [patches.mpp] if patches.mpp else []
    taken.slides, taken.patches = taken.slides + 1, taken.patches + foreign.shape[0]
    grid = grid_of_features(*read_origin(path), intake.request.plan)
    if isinstance(grid, PlacedGrid):
        taken.divided[row.name] = grid.divided_share
    taken.seconds += time.perf_counter() - began


def open_features(row: CohortSlide, folder: FeatureFolder, dim: int) -> ForeignFeatures:
    """Return the features of a slide; raise `BagError` if they cannot be those of an encoder of `dim` dimensions."""
    foreign = folder.open(row.name)
    if foreign.shape[1] != dim:
        raise BagError(foreign.path, f"{foreign.shape[1]} dimensions, expected the {dim} of the encoder")
    return foreign


def require_grid(foreign: ForeignFeatures, origin: BagOrigin, placement: HrPlacement, config: TrainConfig) -> None:
    """Raise `BagError` if a run needs a grid that nests, and the HR patches of a slide have none."""
    stage = config.stage1
    if stage.targets == "on_the_fly" and stage.epochs:
        grid = grid_of_features(with_source(origin, foreign.layout), placement.corners, config.plan)
        if isinstance(grid, PlacedGrid):
            problem = "its grid does not nest into LR patches, which stage1.targets=on_the_fly needs; use stored"
            raise BagError(foreign.path, problem)


class CheckedFeatures(NamedTuple):
    """Number of a slide's HR patches, and sentences on what was found out about them."""

    n_patches: int
    notices: tuple[str, ...]


def check_features_of_slide(
    row: CohortSlide, slide: Slide, folder: FeatureFolder, config: TrainConfig, dim: int
) -> CheckedFeatures:
    """Check the features of an open slide without reading them, and return what a training would say of them.

    Raises
    ------
    BagError
        If they cannot be used.
    """
    foreign = open_features(row, folder, dim)
    patches = prove_patches(foreign, slide)
    placement = place_on_slide(patches, slide, config.plan, foreign.path)
    require_grid(foreign, origin_of_placement(slide, placement, config.plan), placement, config)
    uncovered = uncovered_tissue_notice(placement, slide, config.plan)
    return CheckedFeatures(foreign.shape[0], (*patches.notices, *([uncovered] if uncovered else [])))


def _origin_of(slide: Slide, placement: HrPlacement, request: FeatureRequest) -> BagOrigin:
    origin = origin_of_placement(slide, placement, request.plan)
    return replace(origin, encoder=request.encoder_name, encoder_sha256=request.encoder_sha256)


# ---------------------------------------------------------------- the copy


def write_taken(
    path: Path, foreign: ForeignFeatures, placement: HrPlacement, origin: BagOrigin, source: dict[str, Any]
) -> None:
    """Write features in reading order as `write_bag` would, chunk by chunk, with a hash of their content."""
    rank = np.empty(len(placement.order), dtype=np.int64)
    rank[placement.order] = np.arange(len(rank))
    digest = hashlib.sha256(np.ascontiguousarray(placement.corners[rank]).tobytes())
    with atomic_write(path, 4 * foreign.shape[0] * foreign.shape[1] + placement.corners.nbytes) as partial:
        with h5py.File(partial, "w") as file:
            file["coords"] = placement.corners
            features = file.create_dataset("features", foreign.shape, np.float32)
            features[0] = 0  # the block has a place in the file once something is written
            features.attrs.update({"name": origin.slide, "savetodir": "None", "encoder": origin.encoder})
            offset = features.id.get_offset()
        block = np.memmap(partial, np.float32, "r+", offset, foreign.shape)
        for start, values in foreign.chunks():
            block[rank[start : start + len(values)]] = values
            digest.update(np.ascontiguousarray(values).tobytes())
        block.flush()
        del block  # Windows replaces no file that is mapped
        text = json.dumps({**source, "sha256": digest.hexdigest()})
        with h5py.File(partial, "r+") as file:
            file["coords"].attrs.update(coords_attributes(with_source(origin, text)))
            file.attrs["complete"] = True


def _describe_source(foreign: ForeignFeatures, sampled: int) -> dict[str, Any]:
    name, stamp = foreign.path.name, _stamp(foreign)
    return {"layout": foreign.layout, "file": name, "stamp": stamp, "checked": sampled}


def _stamp(foreign: ForeignFeatures) -> str:
    """Return a hash of names, sizes and times of the files, and of what was read of their geometry."""
    stats = [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in sorted(foreign.parts)]
    geometry = [foreign.unit, foreign.anchor, foreign.side, foreign.side_um, foreign.patch_px, foreign.stated_mpp]
    return _hash(json.dumps([stats, geometry]).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_taken(path: Path, slide: Slide, foreign: ForeignFeatures, checked: int) -> bool:
    """Return whether a complete copy of the same file, for the same slide, exists."""
    if not path.exists():
        return False
    try:
        origin, coords = read_origin(path)
        source = json.loads(origin.source)
    except (BagError, ValueError):
        return False
    same_slide = origin.slide_fingerprint == slide.fingerprint and abs(origin.mpp0 - slide.mpp.mean) < 1e-9
    return bool(
        same_slide
        and source.get("stamp") == _stamp(foreign)
        and source.get("checked", 0) >= checked
        and len(coords) == foreign.shape[0]
    )


def source_fingerprint(paths: Sequence[Path]) -> str:
    """Return a hash of the content of all features of a run, which its fits depend on."""
    hashes = [(path.name, json.loads(read_origin(path)[0].source)["sha256"]) for path in sorted(paths)]
    return _hash(json.dumps(hashes).encode())


# ---------------------------------------------------------------- the sample


def _check_sample(
    slide: Slide, foreign: ForeignFeatures, patches: ProvenPatches, intake: HrIntake, taken: TakenFeatures
) -> None:
    """Encode some patches again and compare; raises as `SampleCheck.cosine` does."""
    began = time.perf_counter()
    count, cosine = intake.sample_check().cosine(slide, foreign, patches)
    taken.encoded += count
    taken.encoding_seconds += time.perf_counter() - began
    taken.cosine = min(taken.cosine, cosine)


def describe_taken(taken: TakenFeatures, folder: FeatureFolder, config: TrainConfig) -> list[str]:
    """Return sentences on the source, on what it saved, and on grids that do not nest."""
    checked = (
        f"{taken.encoded} encoded again agree (cosine {taken.cosine:.4f} or more)"
        if taken.encoded
        else "none encoded now"
    )
    sentences = [
        f"HR features of {taken.slides} slides ({taken.patches:,} patches) are those of {folder.layout}; HR patches "
        f"are not encoded, {checked}"
    ]
    if taken.encoded:
        each = taken.encoding_seconds / taken.encoded
        saved = format_duration(max(0.0, taken.patches * each - taken.seconds))
        sentences.append(
            f"about {saved} saved: encoding took {each:.2g} s for each of {taken.encoded} patches, reading all "
            f"features {format_duration(taken.seconds)}"
        )
    if taken.divided:
        shares = list(taken.divided.values())
        sentences.append(
            f"the HR patches of {len(shares)} slides do not nest into LR patches; each counts for the LR patch that "
            f"holds most of it, and {np.mean(shares):.0%} of their area lies in others (at most {max(shares):.0%})"
        )
    if taken.mpp and max(abs(mpp / config.hr_mpp - 1) for mpp in taken.mpp) > 0.01:
        sentences.append(
            f"their patches have {min(taken.mpp):.3g} to {max(taken.mpp):.3g} µm per pixel, and hr_mpp is "
            f"{config.hr_mpp:g}: the bundle's teacher reads HR patches of {config.hr_mpp:g}"
        )
    return sentences
