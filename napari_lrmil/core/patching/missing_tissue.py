"""Share of the tissue that missing and damaged tiles hide, and the refusal of slides that lack too much of it.

A place without pixels is tissue if the tissue mask or another level shows tissue there, or if tissue surrounds it. What
lies in glass, such as the outer frame that some scanners store empty, is no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import MissingTilesError
from napari_lrmil.core.events import Notice
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.geometry import BoxLevel0, Level
from napari_lrmil.core.patching.mask_filters import Mask, surrounded_by_tissue

if TYPE_CHECKING:
    from napari_lrmil.core.patching.tissue import Tissue
    from napari_lrmil.core.slides.missing_tiles import TileMap
    from napari_lrmil.core.slides.slide import Slide

WARNING_SHARE, MOST_SHARE = 0.05, 1 / 3  # of the tissue: from here on a warning, and a refusal
LEAST_TILE_SHARE = 0.05  # of a tile's area: less tissue is the blur of the mask's edge
JUDGING_PIXELS = 2**26  # most native pixels of other levels that are read to judge a slide
BLOCK_PX = 64  # mask pixels; other levels are read in squares of this side


PatchSize = tuple[tuple[int, int], int]  # width and height in level-0 pixels, and side in pixels as read


@dataclass(frozen=True)
class MissingTiles:
    """Missing and damaged tiles of the levels that were read.

    Attributes
    ----------
    not_stored, damaged
        Tiles for which the file holds nothing, and tiles that do not decode, wherever they lie.
    not_stored_on_tissue, damaged_on_tissue
        Those whose place is tissue.
    tissue_share
        Share of the tissue that they hide, 0 to 1.
    levels
        Levels with such tiles on tissue.
    not_read_on_tissue
        Tiles on tissue that are not stored at levels that were not read. They hide nothing.
    """

    not_stored: int = 0
    damaged: int = 0
    not_stored_on_tissue: int = 0
    damaged_on_tissue: int = 0
    tissue_share: float = 0.0
    levels: tuple[int, ...] = ()
    not_read_on_tissue: int = 0

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is missing and what to do; nothing if all missing tiles are glass that was not stored."""
        kinds = [f"{_tiles(self.not_stored_on_tissue)} not stored"] if self.not_stored_on_tissue else []
        kinds += [f"{_tiles(self.damaged_on_tissue)} damaged"] if self.damaged_on_tissue else []
        sentences = []
        if kinds:
            where = f"{', '.join(kinds)}, level {', '.join(map(str, self.levels))}"
            share = _percent(self.tissue_share)
            sentences.append(f"missing tiles hide {share} of the tissue ({where}) and are read as white; {REMEDY}")
        elif self.damaged:
            sentences.append(f"{_tiles(self.damaged)} outside the tissue damaged; {REMEDY}")
        if self.not_read_on_tissue:
            sentences.append(
                f"{_tiles(self.not_read_on_tissue)} on tissue not stored at levels that were not read; this result "
                f"does not need them, but {REMEDY}"
            )
        return tuple(sentences)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The sentence, if so much is missing that the answer may be wrong."""
        return self.sentences[:1] if self.tissue_share > WARNING_SHARE else ()


REMEDY = "copy the slide again from its source or scan it again"
NOTHING_MISSING = MissingTiles()


def _tiles(n: int) -> str:
    return format_count(n, "tile")


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"


class MissingTilesCheck:
    """Check of a slide after its tissue is known, and again after its patches are read: only reads meet damaged tiles.

    Parameters
    ----------
    slide, tissue
        The slide, which counts damaged tiles, and its tissue mask.
    patches
        Patches of each network that reads the slide.
    allow
        Whether a slide is used if more than a third of its tissue is missing.
    select
        Restricts a mask of tissue to the part of the slide that is analysed; None takes all.
    """

    def __init__(
        self,
        slide: Slide,
        tissue: Tissue,
        patches: Sequence[PatchSize],
        *,
        allow: bool = False,
        select: Callable[[Mask], Mask] | None = None,
    ) -> None:
        self._slide, self._allow = slide, allow
        self._find = partial(find_missing_tiles, slide, tissue, patches, select)
        self._damaged = -1  # tiles at the last look
        self.tiles = NOTHING_MISSING

    def notices(self) -> Iterator[Notice]:
        """Look again, and yield what was not told yet.

        Raises
        ------
        MissingTilesError
            If too much of the tissue is missing.
        """
        if self._damaged == self._slide.damaged_tile_count:
            return
        earlier, self.tiles = self.tiles.sentences, self._find()
        self._damaged = self._slide.damaged_tile_count
        sentences = self.tiles.sentences
        if self.tiles.tissue_share > MOST_SHARE and not self._allow:
            raise MissingTilesError(
                self._slide.path,
                f"{'; '.join(sentences)}, or use the rest: pass --allow-missing, in Python "
                "allow_missing=True, in the window tick 'Allow missing tiles'",
            )
        if sentences != earlier:
            yield from (Notice(text, self._slide.name) for text in sentences)


def why_no_tissue(slide: Slide, tissue: Tissue) -> str | None:
    """Return how many tiles the level of the tissue mask lacks, as the reason for a mask without tissue."""
    maps = _maps(slide, _Raster.of(slide, tissue).level) or _stored_maps(slide, slide.levels[0])
    missing = sum(int(tiles.is_missing.sum()) for tiles in maps)
    if not missing:
        return None
    total, level = maps[0].is_missing.size, maps[0].level.index
    return f"{missing} of {total} tiles of level {level} are not stored or damaged; {REMEDY}"


def find_missing_tiles(
    slide: Slide,
    tissue: Tissue,
    patches: Sequence[PatchSize],
    select: Callable[[Mask], Mask] | None = None,
) -> MissingTiles:
    """Return the missing and damaged tiles of the levels from which the mask and the patches of networks are read.

    Damaged tiles are those that reads have met so far.

    Parameters
    ----------
    slide, tissue
        The slide and its tissue mask.
    patches
        Patches of each network that reads the slide.
    select
        Restricts a mask of tissue to the part of the slide that is analysed; None takes all.
    """
    raster = _Raster.of(slide, tissue)
    levels = {level.index: level for level in (raster.level, *(_patch_level(slide, *size) for size in patches))}
    if not any(_maps(slide, level) for level in levels.values()) and not slide.known_missing_tiles:
        return NOTHING_MISSING
    beyond = raster.outside & raster.holes(_stored_maps(slide, slide.levels[0]))
    unseen = raster.holes(_maps(slide, raster.level)) | beyond
    holes = [raster.holes(_maps(slide, level)) for level in levels.values()]
    hidden = raster.tissue_in(np.logical_or.reduce([unseen, *holes]), unseen)
    whole = raster.mask & ~unseen | hidden
    if select is not None:
        whole = raster.select(whole, select)
        hidden &= whole
    # OpenSlide's bounds end where tiles of level 0 are missing, whatever level is read.
    needed = [*levels.values(), *([slide.levels[0]] if beyond.any() else [])]
    return _count_tiles(raster, levels, needed, hidden, whole)


def _count_tiles(
    raster: _Raster, read: dict[int, Level], needed: Sequence[Level], hidden: Mask, whole: Mask
) -> MissingTiles:
    """Return the numbers of tiles, and the share of the `whole` tissue that is `hidden`."""
    slide = raster.slide
    # By the level of the tiles: several levels may lack those of one.
    stored = {tiles.level.index: tiles for level in needed if (tiles := slide.missing_tiles(level))}
    damaged = {level.index: tiles for level in needed if (tiles := slide.damaged_tiles(level))}
    n_stored, n_damaged = ({i: raster.count(m, hidden) for i, m in each.items()} for each in (stored, damaged))
    is_hiding = sum(n_stored.values()) + sum(n_damaged.values()) > 0
    read_maps = {tiles.level.index for level in read.values() if (tiles := slide.missing_tiles(level))}
    not_read = {tiles.level.index: tiles for tiles in slide.known_missing_tiles if tiles.level.index not in read_maps}
    return MissingTiles(
        not_stored=sum(int(tiles.is_missing.sum()) for tiles in stored.values()),
        damaged=slide.damaged_tile_count,
        not_stored_on_tissue=sum(n_stored.values()),
        damaged_on_tissue=sum(n_damaged.values()),
        tissue_share=float(hidden.sum() / whole.sum()) if is_hiding else 0.0,
        levels=tuple(sorted({i for counts in (n_stored, n_damaged) for i, n in counts.items() if n})),
        not_read_on_tissue=sum(raster.count(tiles, whole & ~hidden) for tiles in not_read.values()),
    )


def _patch_level(slide: Slide, size_level0: tuple[int, int], side: int) -> Level:
    return slide.level_for(*size_level0, (side, side))


def _stored_maps(slide: Slide, level: Level) -> list[TileMap]:
    tiles = slide.missing_tiles(level)
    return [] if tiles is None else [tiles]


def _maps(slide: Slide, level: Level) -> list[TileMap]:
    """Return the tiles of a level without pixels: not stored, and damaged."""
    damaged = slide.damaged_tiles(level)
    return _stored_maps(slide, level) + ([] if damaged is None else [damaged])


@dataclass(frozen=True, eq=False)
class _Raster:
    """The tissue mask on a raster of the whole slide: OpenSlide's bounds of a TIFF end where its tiles are missing.

    Attributes
    ----------
    slide, tissue
        The slide and its mask, which ends at the slide's bounds.
    mask
        (height, width) tissue within the slide, False outside its bounds.
    bounds
        Rows and columns of `mask` that lie within the bounds.
    origin, pixel
        Corner of the raster and size of a mask pixel, x then y, in level-0 pixels.
    level
        Level that the mask was read from.
    """

    slide: Slide
    tissue: Tissue
    mask: Mask
    bounds: tuple[slice, slice]
    origin: tuple[float, float]
    pixel: tuple[float, float]
    level: Level

    @classmethod
    def of(cls, slide: Slide, tissue: Tissue) -> _Raster:
        lattice, bounds = tissue.lattice, slide.bounds
        k = tissue.mask.shape[0] // lattice.rows
        pixel = lattice.cell[0] / k, lattice.cell[1] / k
        before = [int(start // side) for start, side in zip(lattice.origin, pixel, strict=True)]
        origin = lattice.origin[0] - before[0] * pixel[0], lattice.origin[1] - before[1] * pixel[1]
        ends = bounds.x + bounds.width - lattice.origin[0], bounds.y + bounds.height - lattice.origin[1]
        inside = [max(1, int(-(-end // side))) for end, side in zip(ends, pixel, strict=True)]
        # Only pixels whose centre lies in the slide, as what lies outside is no glass.
        sizes = zip((slide.width, slide.height), origin, pixel, strict=True)
        width, height = (max(1, round((size - start) / side)) for size, start, side in sizes)
        mask = np.zeros((height, width), np.bool_)
        part = slice(before[1], before[1] + inside[1]), slice(before[0], before[0] + inside[0])
        shape = mask[part].shape
        mask[part] = tissue.mask[: shape[0], : shape[1]]
        return cls(slide, tissue, mask, part, origin, pixel, slide.level_for(*pixel, (1, 1)))

    @property
    def outside(self) -> Mask:
        """Pixels that lie outside the slide's bounds, where the mask was not read."""
        outside = np.ones(self.mask.shape, np.bool_)
        outside[self.bounds] = False
        return outside

    def _centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x of the columns and y of the rows in level-0 pixels."""
        height, width = self.mask.shape
        x = self.origin[0] + (np.arange(width) + 0.5) * self.pixel[0]
        y = self.origin[1] + (np.arange(height) + 0.5) * self.pixel[1]
        return np.asarray(x, np.float64), np.asarray(y, np.float64)

    def holes(self, maps: Sequence[TileMap], part: tuple[slice, slice] = (slice(None), slice(None))) -> Mask:
        """Return where a level has no pixels, in a part of the raster."""
        holes = np.zeros(self.mask[part].shape, np.bool_)
        x, y = self._centres()
        for tile_map in maps:
            holes |= tile_map.at(x[part[1]], y[part[0]])
        return holes

    def count(self, tile_map: TileMap, hidden: Mask) -> int:
        """Return how many tiles of a map hide tissue."""
        numbers = tile_map.numbers(*self._centres())
        size = tile_map.is_missing.size
        area = np.bincount(numbers[numbers >= 0], minlength=size)
        tissue = np.bincount(numbers[hidden & (numbers >= 0)], minlength=size)
        is_hiding = (tissue > 0) & (tissue >= LEAST_TILE_SHARE * area) & tile_map.is_missing.ravel()
        return int(is_hiding.sum())

    def tissue_in(self, holes: Mask, unseen: Mask) -> Mask:
        """Return where `holes` hide tissue; the mask is not known at `unseen`, as its own level has no pixels there."""
        mask, unseen = self.mask & ~unseen, unseen.copy()
        if unseen.any():
            self._look_at_other_levels(mask, unseen)
        if unseen.any():
            mask |= surrounded_by_tissue(mask, unseen)
        hidden: Mask = mask & holes
        return hidden

    def _look_at_other_levels(self, mask: Mask, unseen: Mask) -> None:
        """Fill in `mask` from other levels, coarser ones first, and clear `unseen` there."""
        levels = sorted(  # its own level shows what lies outside the bounds
            self.slide.levels,
            key=lambda level: (level.downsample < self.level.downsample, abs(level.index - self.level.index)),
        )
        budget = JUDGING_PIXELS
        for level in levels:
            wanted = unseen & ~self.holes(_maps(self.slide, level))
            for top, left in _blocks(wanted):
                part = (slice(top, top + BLOCK_PX), slice(left, left + BLOCK_PX))
                budget -= int(wanted[part].size * self.pixel[0] * self.pixel[1] / level.downsample**2)
                if budget < 0:
                    return
                is_tissue = self._classify(level, top, left)  # may meet damaged tiles
                seen = wanted[part] & ~self.holes(_maps(self.slide, level), part)
                mask[part][seen] = is_tissue[seen]
                unseen[part][seen] = False

    def _classify(self, level: Level, top: int, left: int) -> Mask:
        """Return whether a block of mask pixels is tissue at a level, by the slide's threshold of colour."""
        height, width = self.mask[top : top + BLOCK_PX, left : left + BLOCK_PX].shape
        origin, (across, down) = self.origin, self.pixel
        box = BoxLevel0(origin[0] + left * across, origin[1] + top * down, width * across, height * down)
        pixels = self.slide.read_from(level, box, (width, height)).astype(np.int16)
        is_tissue: Mask = pixels.max(axis=2) - pixels.min(axis=2) > self.tissue.threshold
        return is_tissue

    def select(self, mask: Mask, select: Callable[[Mask], Mask]) -> Mask:
        """Return a mask without what `select`, which takes masks of the lattice, leaves out."""
        part = mask[self.bounds]
        whole = np.zeros(self.tissue.mask.shape, np.bool_)
        whole[: part.shape[0], : part.shape[1]] = part
        selected = np.zeros(mask.shape, np.bool_)
        selected[self.bounds] = select(whole)[: part.shape[0], : part.shape[1]]
        return selected


def _blocks(mask: Mask) -> list[tuple[int, int]]:
    """Return top and left of the squares of `BLOCK_PX` with a True."""
    rows, columns = np.nonzero(mask)
    return sorted(
        set(zip((rows // BLOCK_PX * BLOCK_PX).tolist(), (columns // BLOCK_PX * BLOCK_PX).tolist(), strict=True))
    )
