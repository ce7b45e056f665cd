"""Layout of a TIFF or OME-TIFF slide: its levels wherever they are stored, its pixel format, and its orientation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from napari_lrmil.core.slides.levels import ASPECT_TOLERANCE
from napari_lrmil.core.slides.ome_metadata import NOT_THE_SLIDE, OmeImage, parse_ome_xml
from napari_lrmil.core.slides.pixel_source import ORIENTATIONS, UPRIGHT

if TYPE_CHECKING:
    from tifffile import TiffFile

MAX_TILE_BYTES = 2**28  # decoded
_MASK, _JPEG_CODES = 4, (6, 7, 33007, 34892)  # TIFF codes: bit of the subfile type; compression
_APERIO_YCBCR = 33003  # JPEG 2000
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # TIFF codes: photometric interpretations
_GREY = (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
_ORIENTATION, _EXTRA_UNSPECIFIED = 274, 0


class UnsupportedTiffError(Exception):
    """A TIFF that cannot be read as a slide. The message is a clause that states the reason.

    Attributes
    ----------
    is_for_openslide
        Whether OpenSlide, if it can open the file, reads it rightly.
    """

    def __init__(self, message: str, *, is_for_openslide: bool = False) -> None:
        super().__init__(message)
        self.is_for_openslide = is_for_openslide


@dataclass(frozen=True, eq=False)
class TiffLayout:
    """Where the pixels of a slide are.

    Attributes
    ----------
    levels
        Pages of each level, finest first: one page, or one for each of red, green and blue.
    orientation
        TIFF's code of how the picture is stored.
    ome
        The image in the OME-XML; None if the XML does not describe it.
    is_ome
        Whether the file is an OME-TIFF.
    is_main_page
        Whether level 0 is the first page of the file, which OpenSlide takes for the slide.
    n_repeated
        Further pages of the size of level 0, such as focal planes. They are not read.
    """

    levels: tuple[tuple[Any, ...], ...]
    orientation: int = UPRIGHT
    ome: OmeImage | None = None
    is_ome: bool = False
    is_main_page: bool = True
    n_repeated: int = 0

    @property
    def base(self) -> Any:
        """Page that describes the format of all."""
        return self.levels[0][0].keyframe

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level as stored."""
        return tuple(_size(pages[0]) for pages in self.levels)

    def why_not_openslide(self, openslide_levels: int) -> str | None:
        """Return why OpenSlide would read another picture from this file; None if it reads it rightly."""
        extra = tuple(map(int, self.base.extrasamples))
        reasons = (
            (len(self.levels[0]) > 1, "its colours are stored as separate planes"),
            (not self.is_main_page, "the slide is not the first picture of the file"),
            (self.n_repeated > 0, f"{self.n_repeated + 1} pages have the size of the slide"),
            (self.orientation != UPRIGHT, f"TIFF's orientation {self.orientation} is not upright"),
            (extra[:1] == (_EXTRA_UNSPECIFIED,), "OpenSlide takes its fourth sample, of no stated kind, for opacity"),
            (
                len(self.levels) > openslide_levels,
                f"OpenSlide finds {openslide_levels} of its {len(self.levels)} levels",
            ),
            (self.ome is not None and self.ome.um is not None, "OpenSlide does not read the pixel size of OME-XML"),
        )
        return next((reason for is_so, reason in reasons if is_so), None)


def find_layout(file: TiffFile) -> TiffLayout:
    """Return the layout of an open file.

    Raises
    ------
    UnsupportedTiffError
        If it does not hold a brightfield slide in a format that can be read.
    """
    layout = _ome_layout(file) if file.is_ome else None
    layout = layout or _page_layout(file)
    orientation = layout.levels[0][0].keyframe.tags.get(_ORIENTATION)
    code = UPRIGHT if orientation is None else int(orientation.value)
    layout = replace(layout, orientation=code if code in ORIENTATIONS else UPRIGHT)
    _require_readable(layout.base, len(layout.levels[0]))
    return layout


# ---------------------------------------------------------------- levels


def _page_layout(file: TiffFile) -> TiffLayout:
    """Return the largest page with its SubIFDs and all other pages that are smaller pictures of its shape."""
    file.pages.useframes = False
    len(file.pages)  # lists all pages and ends at one that is listed already; iteration alone would go round for ever
    pages = [page for page in file.pages if not int(getattr(page, "subfiletype", 0)) & _MASK]
    if not pages:
        raise UnsupportedTiffError("it has no page with a picture")
    base = max(pages, key=_area)
    others = [page for page in (*(base.pages or ()), *pages) if page is not base]
    levels = _pyramid((base,), [(page,) for page in others])
    repeated = sum(_size(page) == _size(base) for page in others)
    return TiffLayout(levels, is_main_page=base is pages[0], n_repeated=repeated)


def _ome_layout(file: TiffFile) -> TiffLayout | None:
    """Return the layout that the OME-XML describes; None if the XML names no pixels of this file."""
    images = parse_ome_xml(file.pages.first.description)
    series = [part for part in file.series if part.kind == "ome"]
    if not series:
        return None
    slides = [part for part in series if not NOT_THE_SLIDE.search(part.name or "")] or series
    main = max(slides, key=_series_area)
    image = _image_of(main, series, images)
    base = _planes(main, image)
    lower = [level for level in (*main.levels[1:], *slides) if level is not main]
    candidates = [tuple(level.pages) for level in lower if len(level.pages) == len(base)]
    return TiffLayout(
        _pyramid(base, [pages for pages in candidates if None not in pages]),
        ome=image,
        is_ome=True,
        is_main_page=base[0].index == 0,
    )


def _image_of(main: Any, series: Sequence[Any], images: Sequence[OmeImage]) -> OmeImage | None:
    """Return the image of a series: of the same place if all images have pixels, else of the same size."""
    if len(series) == len(images):
        return images[list(series).index(main)]
    sizes = _axes(main)
    return next((image for image in images if (image.width, image.height) == (sizes.get("X"), sizes.get("Y"))), None)


def _axes(series: Any) -> dict[str, int]:
    """Return axis -> size."""
    return dict(zip(series.axes, series.shape, strict=True))


def _series_area(series: Any) -> int:
    sizes = _axes(series)
    return sizes.get("Y", 0) * sizes.get("X", 0)


def _planes(series: Any, image: OmeImage | None) -> tuple[Any, ...]:
    """Return the pages of a series: one, or three that are red, green and blue."""
    sizes = {axis: size for axis, size in _axes(series).items() if axis not in "YXS" and size > 1}
    pages = tuple(series.pages)
    if None in pages:
        raise UnsupportedTiffError("some of its planes are stored in other files")
    if not sizes:
        return pages[:1]
    channels = sizes.pop("C", 1)
    if sizes:
        text = ", ".join(f"{size} along {axis}" for axis, size in sizes.items())
        raise UnsupportedTiffError(f"it is a stack ({text}); expected one plane, export the plane to be analysed")
    names = ", ".join(name for name in (image.channels if image else ()) if name) or "without names"
    is_bytes = pages[0].keyframe.bitspersample == 8
    if channels != 3 or len(pages) != 3 or (image is not None and not image.is_rgb_by_name) or not is_bytes:
        raise UnsupportedTiffError(
            f"it has {channels} channels of {pages[0].keyframe.bitspersample} bits ({names}), as fluorescence has; "
            "expected brightfield in red, green and blue"
        )
    return pages


def _pyramid(base: tuple[Any, ...], candidates: Sequence[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
    """Return the base and the candidates that can be its lower levels: of its format and shape, each size once."""
    sizes = {_size(base[0]): base}
    for pages in sorted(candidates, key=lambda pages: -_area(pages[0])):
        if _may_be_level(base[0], pages[0]):
            sizes.setdefault(_size(pages[0]), pages)
    return tuple(sizes.values())


def _may_be_level(base: Any, page: Any) -> bool:
    (base_width, base_height), (width, height) = _size(base), _size(page)
    mine, theirs = base.keyframe, page.keyframe
    across, down = base_width / width, base_height / height
    same_format = (mine.samplesperpixel, mine.bitspersample) == (theirs.samplesperpixel, theirs.bitspersample)
    same_shape = abs(across / down - 1) <= ASPECT_TOLERANCE + 1 / width + 1 / height
    # A page that is not tiled in a tiled file is a thumbnail, which nobody promised to be exact.
    return same_format and same_shape and min(across, down) > 1 and (theirs.is_tiled or not mine.is_tiled)


def _size(page: Any) -> tuple[int, int]:
    return int(page.keyframe.imagewidth), int(page.keyframe.imagelength)


def _area(page: Any) -> int:
    width, height = _size(page)
    return width * height


# ---------------------------------------------------------------- format


def _require_readable(page: Any, planes: int) -> None:
    """Raise `UnsupportedTiffError` if the pixels are of a kind that cannot become RGB with certainty."""
    samples, bits, photometric = page.samplesperpixel, page.bitspersample, int(page.photometric)
    if page.dtype is None or page.dtype.kind != "u" or bits not in (8, 16):
        is_small = page.dtype is not None and page.dtype.kind in "iu" and bits <= 16
        kind = page.dtype or "mixed kinds"
        message = f"its samples of {bits} bits are {kind}; expected whole numbers of 8 or 16 bits"
        raise UnsupportedTiffError(message, is_for_openslide=is_small)
    is_raw_ycbcr = photometric == _YCBCR and int(page.compression) not in _JPEG_CODES
    if is_raw_ycbcr or int(page.compression) == _APERIO_YCBCR:
        raise UnsupportedTiffError("it stores YCbCr without JPEG; expected RGB", is_for_openslide=True)
    kinds = {_WHITE_IS_ZERO: (1,), _BLACK_IS_ZERO: (1,), _PALETTE: (1,), _RGB: (3, 4), _YCBCR: (3,)}
    if samples not in kinds.get(photometric, ()) or (planes > 1 and photometric not in _GREY):
        name = getattr(page.photometric, "name", photometric)
        message = f"it has {samples} samples per pixel of the kind {name}; expected RGB, grey or palette"
        is_known = _EXTRA_UNSPECIFIED not in map(int, page.extrasamples)  # else OpenSlide takes one for opacity
        raise UnsupportedTiffError(message, is_for_openslide=is_known)
    width, height = tile_size(page)
    if getattr(page, "imagedepth", 1) != 1 or width * height * samples * bits // 8 > MAX_TILE_BYTES:
        raise UnsupportedTiffError(f"its tiles or strips of {width} x {height} px are too large; expected tiles")


def require_complete(file: TiffFile, layout: TiffLayout) -> None:
    """Raise `UnsupportedTiffError` if a tile lies beyond the end of the file or is not listed."""
    end = file.filehandle.size
    for number, pages in enumerate(layout.levels):
        for page in pages:
            width, height = tile_size(page.keyframe)
            columns, rows = -(-_size(page)[0] // width), -(-_size(page)[1] // height)
            expected = columns * rows * (page.keyframe.samplesperpixel if is_planar(page.keyframe) else 1)
            offsets, counts = page.dataoffsets, page.databytecounts
            if not len(offsets) == len(counts) == expected:
                message = f"level {number} lists {len(offsets)} tiles; expected {expected}"
                raise UnsupportedTiffError(message, is_for_openslide=True)
            if any(offset + count > end for offset, count in zip(offsets, counts, strict=True)):
                message = f"level {number} ends beyond the file; expected it complete and not truncated, copy it again"
                raise UnsupportedTiffError(message, is_for_openslide=True)


def tile_size(page: Any) -> tuple[int, int]:
    """Return width and height of a page's tiles or strips."""
    if page.is_tiled:
        return int(page.tilewidth), int(page.tilelength)
    return int(page.imagewidth), int(min(page.rowsperstrip, page.imagelength))


def is_planar(page: Any) -> bool:
    """Whether each sample has tiles of its own."""
    return int(page.planarconfig) == 2 and page.samplesperpixel > 1
