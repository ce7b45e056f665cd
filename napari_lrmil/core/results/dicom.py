"""Attention as DICOM: a parametric map with the values, and a picture of it for viewers that read slides only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.results.attention_raster import AttentionRaster, MapChannel, rasterize_stored
from napari_lrmil.core.results.dicom_frame import PATIENT_AND_STUDY, THICKNESS_MM, SlideFrame, content_uid
from napari_lrmil.core.results.reader import StoredPrediction
from napari_lrmil.core.slides.dicom_headers import WSI_CLASS
from napari_lrmil.core.visualize.colormaps import viridis_colors
from napari_lrmil.core.visualize.overlay import RESEARCH_USE, attention_limits
from napari_lrmil.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

MAP_FILE, PICTURE_FILE = "attention.dcm", "attention_picture.dcm"
PRODUCT = "napari-lrmil"
UTF8 = "ISO_IR 192"
LONGEST_LO, LONGEST_SH = 64, 16  # characters of a long and of a short string
ATTENTION, OWN_FRAME = "Attention of MIL", "Own frame of reference"
MAP_SERIES, PICTURE_SERIES = 7001, 7002  # numbers that scanners do not reach
CARRIED = (  # from the map to its picture
    *PATIENT_AND_STUDY,
    "SpecificCharacterSet",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "ContentDate",
    "ContentTime",
    "ImageOrientationSlide",
    "ReferencedSeriesSequence",
    "SourceImageSequence",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


@dataclass(frozen=True)
class _Map:
    """What both files are made of."""

    stored: StoredPrediction
    raster: AttentionRaster
    frame: SlideFrame

    @property
    def spacing(self) -> tuple[float, float]:
        """Height and width of a patch in mm."""
        (width, height), (rows, columns) = self.raster.pixel_level0, self.frame.spacing
        return height * rows, width * columns

    @property
    def position(self) -> tuple[float, ...]:
        """Position of the centre of the first patch in mm."""
        (x, y), (width, height) = self.raster.origin_level0, self.raster.pixel_level0
        return self.frame.position(x + width / 2, y + height / 2)

    def uid(self, of: str) -> str:
        """Return a UID that depends on slide, model and values: another result never gets the same one."""
        digest = hashlib.sha256(b"".join(channel.values.tobytes() for channel in self.raster.channels)).hexdigest()
        summary = self.stored.summary
        frame = self.frame.headers[0].FrameOfReferenceUID
        return content_uid(f"{summary.slide_fingerprint} {summary.bundle_sha256} {digest} {frame} {of}")


def write_dicom_maps(folder: Path, stored: StoredPrediction, frame: SlideFrame) -> tuple[Path, Path]:
    """Write a slide's maps as DICOM into `folder`, and return the paths of the parametric map and of its picture.

    The map has one frame for each channel of `rasterize_stored`, float32 with NaN outside patches. The picture is a
    whole-slide image of the student's attention in the overlay's colours, white outside patches.

    Raises
    ------
    StoredError
        If a tag of the source that is to be kept is not valid.
    """
    content = _Map(stored, rasterize_stored(stored), frame)
    try:
        parametric_map = _build_map(content)
    except ValueError as error:  # such as a sex that DICOM does not know
        raise StoredError(
            stored.folder,
            f"the header of the slide's DICOM file cannot be carried over ({error}); leave --keep-patient out",
        ) from error
    picture = _build_picture(content, parametric_map)
    paths = folder / MAP_FILE, folder / PICTURE_FILE
    for path, dataset in zip(paths, (parametric_map, picture), strict=True):
        with atomic_write(path) as partial:
            dataset.save_as(partial, enforce_file_format=True)
    return paths


def _build_map(content: _Map) -> Dataset:
    """Return the parametric map."""
    import highdicom as hd

    channels, headers = content.raster.channels, content.frame.headers
    summary = content.stored.summary
    low, high = attention_limits([_finite(channels[0])], "raw")
    parametric_map = hd.pm.ParametricMap(
        source_images=headers[:1],
        further_source_images=headers[1:],
        pixel_array=np.stack([channel.values for channel in channels], axis=-1)[None],
        series_instance_uid=content.uid("map series"),
        series_number=MAP_SERIES,
        sop_instance_uid=content.uid("map"),
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=summary.bundle[:LONGEST_LO],
        software_versions=__version__,
        device_serial_number=summary.bundle_sha256[:LONGEST_LO],
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[[_value_mapping(channel)] for channel in channels],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=(low + high) / 2, window_width=high - low)],
        pixel_measures=hd.PixelMeasuresSequence(pixel_spacing=content.spacing, slice_thickness=THICKNESS_MM),
        plane_positions=[hd.PlanePositionSequence("SLIDE", content.position, (1, 1))],
        content_label="ATTENTION",
        content_description=f"{RESEARCH_USE} {OWN_FRAME if content.frame.own_reason else ATTENTION}",
        series_description=f"{PRODUCT}: attention. {RESEARCH_USE}",
        specific_character_set=UTF8,
    )
    if content.frame.own_reason:
        _remove_sources(parametric_map)
    return parametric_map


def _finite(channel: MapChannel) -> NDArray[np.float32]:
    values: NDArray[np.float32] = channel.values[np.isfinite(channel.values)]
    return values


def _value_mapping(channel: MapChannel) -> Any:
    """Return the description of a channel's values, which are stored as they are."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    values = _finite(channel)
    return hd.pm.RealWorldValueMapping(
        lut_label=channel.label[:LONGEST_SH],
        lut_explanation=channel.explanation[:LONGEST_LO],
        unit=codes.UCUM.NoUnits,
        value_range=(float(values.min()), float(values.max())),
        slope=1.0,
        intercept=0.0,
    )


def _remove_sources(dataset: Dataset) -> None:
    """Remove references to a source image that no DICOM file has."""
    for name in ("ReferencedSeriesSequence", "SourceImageSequence"):
        if name in dataset:
            delattr(dataset, name)
    for group in (*dataset.SharedFunctionalGroupsSequence, *dataset.get("PerFrameFunctionalGroupsSequence", ())):
        if "DerivationImageSequence" in group:
            del group.DerivationImageSequence


# ---------------------------------------------------------------- picture


def _build_picture(content: _Map, parametric_map: Dataset) -> Dataset:
    """Return the picture as a derived whole-slide image of one frame."""
    from pydicom import Dataset

    picture = Dataset()
    for name in CARRIED:
        if name in parametric_map:
            setattr(picture, name, parametric_map[name].value)
    picture.SOPClassUID, picture.SOPInstanceUID = WSI_CLASS, content.uid("picture")
    picture.SeriesInstanceUID, picture.Modality = content.uid("picture series"), "SM"
    picture.SeriesNumber, picture.InstanceNumber = PICTURE_SERIES, 1
    picture.SeriesDescription = f"{PRODUCT}: picture. {RESEARCH_USE}"
    picture.ImageComments = RESEARCH_USE
    picture.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    picture.BurnedInAnnotation, picture.SpecimenLabelInImage = "NO", "NO"
    picture.FocusMethod, picture.ExtendedDepthOfField = "AUTO", "NO"
    picture.VolumetricProperties = "VOLUME"
    picture.AcquisitionDateTime = f"{picture.ContentDate}{picture.ContentTime}"
    picture.AcquisitionContextSequence = []
    _add_specimen(picture, content.frame.headers[0])
    _add_optical_path(picture)
    _add_geometry(picture, content)
    _add_pixels(picture, content.raster.channels[0].values)
    return _with_file_meta(picture)


def _add_specimen(picture: Dataset, header: Dataset) -> None:
    """Add slide and specimen, which a whole-slide image must name: those of the source if they were kept."""
    from pydicom import Dataset

    for name in ("ContainerIdentifier", "ContainerTypeCodeSequence", "SpecimenDescriptionSequence"):
        if name in header:
            setattr(picture, name, header[name].value)
    picture.IssuerOfTheContainerIdentifierSequence = []
    if "ContainerIdentifier" not in picture:
        picture.ContainerIdentifier, picture.ContainerTypeCodeSequence = "UNKNOWN", []
    if "SpecimenDescriptionSequence" not in picture:
        specimen = Dataset()
        specimen.SpecimenIdentifier, specimen.SpecimenUID = "UNKNOWN", content_uid(f"{picture.SOPInstanceUID} specimen")
        specimen.IssuerOfTheSpecimenIdentifierSequence, specimen.SpecimenPreparationSequence = [], []
        picture.SpecimenDescriptionSequence = [specimen]


def _add_optical_path(picture: Dataset) -> None:
    from PIL import ImageCms
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    path, light = Dataset(), Dataset()
    code = codes.DCM.BrightfieldIllumination
    light.CodeValue, light.CodingSchemeDesignator, light.CodeMeaning = code.value, code.scheme_designator, code.meaning
    path.OpticalPathIdentifier, path.IlluminationTypeCodeSequence = "1", [light]
    path.ICCProfile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path.ColorSpace = "SRGB"
    picture.OpticalPathSequence, picture.NumberOfOpticalPaths = [path], 1


def _add_geometry(picture: Dataset, content: _Map) -> None:
    """Add size and position on the slide: the whole picture is one frame."""
    from pydicom import Dataset
    from pydicom.valuerep import format_number_as_ds

    rows, columns = content.raster.channels[0].values.shape
    start, measures, shared, kind, organisation = (Dataset() for _ in range(5))
    for axis, value in zip("XYZ", content.position, strict=True):
        if axis != "Z":
            setattr(start, f"{axis}OffsetInSlideCoordinateSystem", format_number_as_ds(float(value)))
    measures.PixelSpacing = [format_number_as_ds(value) for value in content.spacing]
    measures.SliceThickness = THICKNESS_MM
    kind.FrameType = picture.ImageType
    shared.PixelMeasuresSequence, shared.WholeSlideMicroscopyImageFrameTypeSequence = [measures], [kind]
    organisation.DimensionOrganizationUID = content.uid("picture dimensions")
    picture.DimensionOrganizationSequence, picture.DimensionOrganizationType = [organisation], "TILED_FULL"
    picture.SharedFunctionalGroupsSequence, picture.TotalPixelMatrixOriginSequence = [shared], [start]
    picture.Rows = picture.TotalPixelMatrixRows = rows
    picture.Columns = picture.TotalPixelMatrixColumns = columns
    picture.NumberOfFrames = picture.TotalPixelMatrixFocalPlanes = 1
    picture.ImagedVolumeHeight, picture.ImagedVolumeWidth = rows * content.spacing[0], columns * content.spacing[1]
    picture.ImagedVolumeDepth = THICKNESS_MM * 1000  # µm, as the standard has it for the depth alone


def _add_pixels(picture: Dataset, values: NDArray[np.float32]) -> None:
    low, high = attention_limits([values[np.isfinite(values)]], "raw")
    colours = viridis_colors(np.nan_to_num((values - low) / (high - low)))
    colours[~np.isfinite(values)] = 255
    picture.SamplesPerPixel, picture.PhotometricInterpretation, picture.PlanarConfiguration = 3, "RGB", 0
    picture.BitsAllocated = picture.BitsStored = 8
    picture.HighBit, picture.PixelRepresentation = 7, 0
    content = colours.tobytes()
    picture.PixelData = content + b"\0" * (len(content) % 2)


def _with_file_meta(picture: Dataset) -> Dataset:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    picture.file_meta = FileMetaDataset()
    picture.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    picture.file_meta.MediaStorageSOPClassUID = picture.SOPClassUID
    picture.file_meta.MediaStorageSOPInstanceUID = picture.SOPInstanceUID
    return picture
