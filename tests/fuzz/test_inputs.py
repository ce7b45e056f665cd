"""A tenth of the campaign of mutated files; ``make fuzz`` runs the whole. No file may crash, hang or be misread."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

from fuzz.campaign import describe, format_table, run_inputs
from fuzz.inputs import INPUTS, NUMBERS, SLIDE_KINDS, is_available
from fuzz.mutation import PIXELS, TABLES, TAGS
from fuzz.tiff_mutations import TiffMap
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide

PART = 10
DECODED_GOAL = 0.3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited and read as Linux does it")
@pytest.mark.parametrize("name", INPUTS)
def test_mutated_files_are_right_or_said(name: str, tmp_path: Path) -> None:
    if not is_available(name):
        pytest.skip(f"there is no writer of {name}, and the development data is not on this machine")
    number = NUMBERS[name] // PART
    tally = run_inputs(name, tmp_path, range(number))
    assert not tally.failures, "\n".join(map(describe, tally.failures))
    assert tally.tried == number
    if name in SLIDE_KINDS:
        assert tally.decoded >= DECODED_GOAL * number, format_table([tally.cells])


def test_places_of_a_tiff_are_those_that_its_reader_finds(tmp_path: Path) -> None:
    import tifffile

    for variant in ("svs", "ome", "generic", "bounds"):  # the last is BigTIFF
        path = write_slide(tmp_path / variant, PhantomSlide("p", LESION, 5, (1024, 768)), variants=[variant])
        places = TiffMap(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            pages = [page for first in file.pages for page in (first, *(first.pages or ()))]
            expected = {at for page in pages for at in page.dataoffsets}
        assert {tile.offset for tile in places.tiles} == expected
        kinds = [places.mutate(Random(i)).kind for i in range(400)]
        assert all(60 < kinds.count(kind) < 140 for kind in (TAGS, TABLES, PIXELS))
