"""Place of a slide for DICOM files: the header of a DICOM slide, or a frame of reference of the slide's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid5

import numpy as np

from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.patching.regions import NAMESPACE
from napari_lrmil.core.results.reader import StoredPrediction, locate_slide
from napari_lrmil.core.slides.dicom_headers import WSI_CLASS, DicomHeader, read_dicom_header
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    from pydicom import Dataset

# What a map needs of its source. Anything else, such as a name or a date, is left out unless it is asked for.
TECHNICAL = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "ImageType",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixOriginSequence",
    "TotalPixelMatrixFocalPlanes",
    "ImageOrientationSlide",
    "DimensionOrganizationType",
    "SharedFunctionalGroupsSequence",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
PATIENT_AND_STUDY = (  # type 2 of every DICOM file: present, and empty if not known
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
POSITION = ("FrameOfReferenceUID", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence")
THICKNESS_MM = 0.004  # of a section, if the source states none


@dataclass(frozen=True)
class SlideFrame:
    """Place of a slide's level-0 pixels in a frame of reference.

    Attributes
    ----------
    headers
        Headers of the level-0 image: one, or several parts of one image. Of a frame of its own, one that no file has.
    spacing
        Height and width of a level-0 pixel in mm.
    origin
        Position of the centre of the first level-0 pixel in mm: x, y, z.
    own_reason
        Why the frame is the slide's own; empty for that of a DICOM slide.
    """

    headers: tuple[Dataset, ...]
    spacing: tuple[float, float]
    origin: tuple[float, float, float]
    own_reason: str = ""

    def position(self, x: float, y: float) -> tuple[float, ...]:
        """Return the position in mm of a level-0 point, where the centre of the first pixel is (0.5, 0.5)."""
        cosines = np.array(self.headers[0].ImageOrientationSlide, dtype=np.float64)
        along_row, along_column = cosines[:3] * self.spacing[1], cosines[3:] * self.spacing[0]
        return tuple((np.array(self.origin) + along_row * (x - 0.5) + along_column * (y - 0.5)).tolist())


def find_slide_frame(stored: StoredPrediction, folders: Sequence[Path], *, keep_patient: bool) -> SlideFrame:
    """Return the frame of reference of the slide of some results.

    Parameters
    ----------
    stored
        The results. The slide is looked for where they say, see `locate_slide`.
    folders
        Folders that may lie near the slide.
    keep_patient
        Whether the header keeps all that identifies patient, study and specimen.

    Raises
    ------
    StoredError
        If the file at the slide's place is another slide, or several images match.
    """
    stated = stored.summary.path
    path = locate_slide(Path(stated), [*folders, stored.folder]) if stated else None
    if path is None:
        return own_frame(stored, "the slide's file was not found; --slides names its folder")
    files = _series_files(path)
    if not files:
        return own_frame(stored, "the slide is no DICOM file")
    _require_same_slide(stored, path)
    headers = _level0_headers(stored, files)
    lacking = [name for name in POSITION if name not in headers[0]]
    if lacking:
        return own_frame(stored, f"the slide's DICOM file has no {lacking[0]}")
    try:
        spacing = headers[0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    except (AttributeError, IndexError):
        return own_frame(stored, "the slide's DICOM file has no PixelSpacing for all of its frames")
    start = headers[0].TotalPixelMatrixOriginSequence[0]
    offsets = (f"{axis}OffsetInSlideCoordinateSystem" for axis in "XYZ")
    x, y, z = (float(start.get(name) or 0) for name in offsets)
    shown = tuple(_with_empty_patient(header if keep_patient else _technical(header)) for header in headers)
    return SlideFrame(shown, (float(spacing[0]), float(spacing[1])), (x, y, z))


def _series_files(path: Path) -> list[tuple[Path, DicomHeader]]:
    """Return the levels of the DICOM slide at `path`, a file or a folder; none for other slides."""
    candidates = sorted(path.iterdir()) if path.is_dir() else sorted(path.parent.iterdir())
    own = None if path.is_dir() else read_dicom_header(path)
    if not path.is_dir() and (own is None or not own.is_slide):
        return []
    headers = ((file, read_dicom_header(file)) for file in candidates)
    return [
        (file, header)
        for file, header in headers
        if header is not None and header.is_slide and header.is_volume and (own is None or header.series == own.series)
    ]


def _require_same_slide(stored: StoredPrediction, path: Path) -> None:
    with Slide(path) as slide:
        fingerprint = slide.fingerprint
    if fingerprint != stored.summary.slide_fingerprint:
        raise StoredError(
            stored.folder, f"{path} is another slide than the one of these results; give the right folder by --slides"
        )


def _level0_headers(stored: StoredPrediction, files: Sequence[tuple[Path, DicomHeader]]) -> tuple[Dataset, ...]:
    """Return the headers of the image that is level 0."""
    import pydicom

    attributes = stored.student.attributes
    size = (int(attributes["level0_width"]), int(attributes["level0_height"]))
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file, _ in files]
    fitting = [h for h in headers if (h.get("TotalPixelMatrixColumns"), h.get("TotalPixelMatrixRows")) == size]
    series = {header.SeriesInstanceUID for header in fitting}
    if len(series) != 1:
        raise StoredError(
            stored.folder,
            f"{len(series)} DICOM series have an image of {size[0]} x {size[1]} pixels, the level 0 of these results; "
            "expected one: keep one slide in a folder",
        )
    return tuple(fitting)


def _technical(header: Dataset) -> Dataset:
    """Return a header without anything that identifies patient, study or specimen, but for the UIDs of the images."""
    from pydicom import Dataset

    technical = Dataset()
    for name in TECHNICAL:
        if name in header:
            setattr(technical, name, header[name].value)
    return technical


def _with_empty_patient(header: Dataset) -> Dataset:
    """Return a header in which the tags of patient and study that it lacks are empty."""
    for name in PATIENT_AND_STUDY:
        if name not in header:
            setattr(header, name, "")
    return header


def own_frame(stored: StoredPrediction, reason: str) -> SlideFrame:
    """Return a frame of reference whose origin is the corner of level 0: x to the right, y down.

    Its UIDs depend on the slide's content, so that several maps of a slide have the same frame.
    """
    from pydicom import Dataset

    attributes, fingerprint = stored.student.attributes, stored.summary.slide_fingerprint
    width, height = (float(side) for side in attributes["patch_level0_xy"])
    side_mm = float(attributes["patch_um"]) / 1000
    spacing = (side_mm / height, side_mm / width)  # patches are squares on the slide
    measures, shared, start = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [f"{value:.10g}" for value in spacing], THICKNESS_MM
    shared.PixelMeasuresSequence = [measures]
    for axis, centre in (("X", spacing[1] / 2), ("Y", spacing[0] / 2), ("Z", 0.0)):
        setattr(start, f"{axis}OffsetInSlideCoordinateSystem", f"{centre:.10g}")
    header: Any = Dataset()
    header.SOPClassUID, header.Modality = WSI_CLASS, "SM"
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(header, name, content_uid(f"{fingerprint} {name}"))
    header.PositionReferenceIndicator = ""
    header.Rows = header.Columns = 1
    header.NumberOfFrames = 1
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = (
        int(attributes[name]) for name in ("level0_height", "level0_width")
    )
    header.TotalPixelMatrixOriginSequence, header.SharedFunctionalGroupsSequence = [start], [shared]
    header.ImageOrientationSlide = [1, 0, 0, 0, 1, 0]
    return SlideFrame((_with_empty_patient(header),), spacing, (spacing[1] / 2, spacing[0] / 2, 0.0), own_reason=reason)


def content_uid(text: str) -> str:
    """Return a DICOM UID that depends on a text only."""
    return f"2.25.{uuid5(NAMESPACE, text).int}"
