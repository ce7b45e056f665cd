"""Kinds of input of the campaign: undamaged files of each, their mutations, and the call that must answer."""

from __future__ import annotations

import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from fuzz.dicom_mutations import DicomMap
from fuzz.drawn_annotations import WHOLE, draw_annotations
from fuzz.mutation import BYTES, TAGS, Mutation, mutate_bytes
from fuzz.text_mutations import mutate_annotation, mutate_json, mutate_table
from fuzz.tiff_mutations import TiffMap

SHARED = Path(__file__).parents[3] / "shared" / "data" / "slides"
PHANTOM_PX = (1024, 768)
DIFFERENT = 0.02  # of a probability: an answer that says something else
OVERVIEW_PX, OTHER_LEVELS, LOST = 256, 50, 0.01  # side, grey levels and share of pixels that show something else
SAID, RIGHT, SILENT = "said", "right", "silent"


@dataclass(frozen=True)
class Answer:
    """What a file was answered with.

    Attributes
    ----------
    outcome
        ``right`` or ``silent``: an answer that hides damage. Errors are classified by the caller.
    text
        Why an answer is silent.
    has_decoded
        Whether pixels were decoded for the answer.
    """

    outcome: str = RIGHT
    text: str = ""
    has_decoded: bool = False


class Inputs(ABC):
    """One kind of input.

    Parameters
    ----------
    folder
        Holds the undamaged files, and one mutated file at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def mutate(self, index: int) -> tuple[Path, Mutation]:
        """Write the mutated file of this number; return its path and what was done."""

    @abstractmethod
    def answer(self, path: Path, mutation: Mutation) -> Answer:
        """Call the software with a file."""

    @property
    def has_decoded(self) -> bool:
        """Whether the last call came as far as decoding pixels, even if it then failed."""
        return False


@dataclass(frozen=True)
class Reading:
    """Answer to an undamaged slide."""

    probabilities: dict[str, float]
    notices: frozenset[str]
    overview: Any

    def hides(self, right: Reading) -> str:
        """Return how this answer differs from the right one without a word; empty if it does not.

        OpenSlide fills missing tiles from another level if it can, which is no damage: the picture must differ too.
        """
        import numpy as np

        change = max(abs(right.probabilities[name] - share) for name, share in self.probabilities.items())
        other = np.abs(self.overview.astype(int) - right.overview).max(axis=-1) > OTHER_LEVELS
        if self.notices - right.notices or change <= DIFFERENT or other.mean() <= LOST:
            return ""
        return f"damage changes {100 * other.mean():.0f} % of the pixels and a probability by {change:.3f}"


class Slides(Inputs):
    """Slides in one file: SVS, NDPI, OME-TIFF and plain TIFF."""

    suffix, variants = ".tif", ("generic",)
    shared: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._slide: Any = None
        self._decoded_before = 0

    @cached_property
    def seeds(self) -> list[Path]:
        """Undamaged files: one that is painted, and real ones where they are present."""
        return [*self._painted(), *(SHARED / name for name in self.shared if (SHARED / name).exists())]

    def _painted(self) -> list[Path]:
        from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide

        existing = list(self.folder.glob("painted*"))
        path = [p for p in existing if not p.name.endswith(".geojson")]
        return path or [
            write_slide(self.folder, PhantomSlide("painted", LESION, 5, PHANTOM_PX), variants=self.variants)
        ]

    @cached_property
    def _maps(self) -> dict[Path, TiffMap | DicomMap]:
        return {}

    def _map(self, seed: Path) -> TiffMap | DicomMap:
        if seed not in self._maps:
            self._maps[seed] = self.parse(seed.read_bytes())
        return self._maps[seed]

    def parse(self, content: bytes) -> TiffMap | DicomMap:
        """Return the places of a file's structures."""
        return TiffMap(content)

    def mutate(self, index: int) -> tuple[Path, Mutation]:
        random = Random(f"{type(self).__name__} {index}")
        seed = self.seed(index)
        mutation = self._map(seed).mutate(random)
        return self.place(seed, mutation), mutation

    def seed(self, index: int) -> Path:
        """Return the undamaged file of a number."""
        return self.seeds[index % len(self.seeds)]

    def place(self, seed: Path, mutation: Mutation) -> Path:
        """Write a mutated file; return the path to call the software with."""
        path = self.folder / "mutated" / f"{seed.stem}{self.suffix}"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # a new file, not new content: readers may still map the old one
        path.write_bytes(mutation.content)
        self._current = seed
        return path

    @cached_property
    def _bundle(self) -> Any:
        from napari_lrmil.core.models.bundle import Bundle
        from support.networks import untrained_bundle

        folder = self.folder / "bundle"
        return Bundle(folder) if folder.exists() else untrained_bundle(folder, teacher=False)

    @cached_property
    def _readings(self) -> dict[Path, Reading | None]:
        """Answers to the undamaged files; None for those that are refused, such as fluorescence."""
        return {}

    def _undamaged(self, seed: Path) -> Reading | None:
        from napari_lrmil.core.errors import LrmilError

        if seed not in self._readings:
            try:
                self._readings[seed] = self._read(seed)
            except LrmilError:
                self._readings[seed] = None
        return self._readings[seed]

    def _read(self, path: Path) -> Reading:
        """Open and describe a slide, predict it, and read its coarsest level."""
        from napari_lrmil.cli.info import slide_facts
        from napari_lrmil.core.events import Finished, Notice
        from napari_lrmil.core.geometry import BoxLevel0
        from napari_lrmil.core.inference.predict import predict
        from napari_lrmil.core.slides.slide import Slide

        self._slide, self._decoded_before = None, 0
        with Slide(path) as slide:
            self._slide, self._decoded_before = slide, slide.pixels_decoded
            json.dumps(slide_facts(slide))
            events = list(predict(slide, self._bundle, device="cpu"))
            overview = slide.read(BoxLevel0(0, 0, slide.width, slide.height), (OVERVIEW_PX, OVERVIEW_PX))
            last = slide.levels[-1]
            slide.read_level(len(slide.levels) - 1, 0, 0, min(last.width, 512), min(last.height, 512))
        (prediction,) = (event.result for event in events if isinstance(event, Finished))
        told = {str(event) for event in events if isinstance(event, Notice)} | set(prediction.warnings)
        return Reading(prediction.student.probabilities, frozenset(told), overview)

    @property
    def has_decoded(self) -> bool:
        return self._slide is not None and self._slide.pixels_decoded > self._decoded_before

    def answer(self, path: Path, mutation: Mutation) -> Answer:
        reading = self._read(path)
        shares = reading.probabilities.values()
        if not all(map(math.isfinite, shares)) or abs(sum(shares) - 1) > 1e-6:
            return Answer(SILENT, f"probabilities {reading.probabilities}", self.has_decoded)
        right = self._undamaged(self._current)
        if mutation.is_undecodable and right is not None and (hidden := reading.hides(right)):
            return Answer(SILENT, hidden, self.has_decoded)
        return Answer(has_decoded=self.has_decoded)


class Svs(Slides):
    """Aperio SVS."""

    suffix, variants, shared = ".svs", ("svs",), ("CMU-1-Small-Region.svs",)


class OmeTiff(Slides):
    """OME-TIFF."""

    suffix, variants = ".ome.tif", ("ome",)


class Ndpi(Slides):
    """Hamamatsu NDPI, of which there is only a real one."""

    suffix, shared = ".ndpi", ("test3-TRITC 2 (560).ndpi",)

    def _painted(self) -> list[Path]:
        return []


class Dicom(Slides):
    """DICOM, of which there is only a real one: a folder of four files, mostly that of the slide is mutated."""

    suffix, shared = ".dcm", ("CMU-1-Small-Region_dicom",)

    def _painted(self) -> list[Path]:
        return []

    def parse(self, content: bytes) -> TiffMap | DicomMap:
        return DicomMap(content)

    def seed(self, index: int) -> Path:
        files = sorted(self.seeds[0].glob("*.dcm"), key=lambda path: path.stat().st_size)
        return files[-1] if index % 4 else files[index // 4 % (len(files) - 1)]

    def place(self, seed: Path, mutation: Mutation) -> Path:
        folder = self.folder / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in seed.parent.iterdir():
            os.symlink(file, folder / file.name)
        (folder / seed.name).unlink()
        (folder / seed.name).write_bytes(mutation.content)
        self._current = seed
        return folder

    def _undamaged(self, seed: Path) -> Reading | None:
        return super()._undamaged(seed.parent)


# ---------------------------------------------------------------- annotations and tables

GEOJSON = json.dumps(
    {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[10, 10], [900, 20.5], [800, 700], [10, 10]]]},
                "properties": {"classification": {"name": "Tumor", "color": [200, 0, 0]}},
            },
            {
                "type": "Feature",
                "geometry": {
                    "type": "MultiPolygon",
                    "coordinates": [[[[0, 0], [500, 0], [500, 500], [0, 0]]], [[[600, 600], [900, 600], [900, 900]]]],
                },
                "properties": {"name": "ä"},
            },
        ],
    }
)
TRIANGLE = ((1, 2), (900, 9), (400, 700))
CORNERS = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(TRIANGLE))
ASAP = (
    f'<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" '
    f'Color="#F4FA58"><Coordinates>{CORNERS}</Coordinates></Annotation><Annotation Name="b" Type="Rectangle" '
    f'PartOfGroup="None"><Coordinates>{CORNERS}</Coordinates></Annotation></Annotations><AnnotationGroups/>'
    "</ASAP_Annotations>"
)
VERTICES = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in TRIANGLE)
IMAGESCOPE = (
    f'<Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name="x" LineColor="65280"><Regions>'
    f'<Region Id="1" Type="0" NegativeROA="0"><Vertices>{VERTICES}</Vertices></Region>'
    f'<Region Id="2" Type="2"><Vertices>{VERTICES}</Vertices></Region>'
    "</Regions></Annotation></Annotations>"
)


DRAWN = "drawn"


class Annotations(Inputs):
    """Files of regions: mutated ones, and a third that Hypothesis draws."""

    texts = (GEOJSON, ASAP, IMAGESCOPE)

    @cached_property
    def _drawn(self) -> list[bytes]:
        return draw_annotations(170)

    def mutate(self, index: int) -> tuple[Path, Mutation]:
        random, number = Random(f"annotation {index}"), index // 3
        if index % 3 == 2 and number < len(self._drawn):
            content, note = self._drawn[number], DRAWN
        else:
            content, note = mutate_annotation(random, random.choice(self.texts).encode())
        path = self.folder / "mutated.geojson"
        path.write_bytes(content)
        return path, Mutation(content, BYTES, note)

    def answer(self, path: Path, mutation: Mutation) -> Answer:
        import numpy as np

        from napari_lrmil.core.geometry import Bounds
        from napari_lrmil.core.patching.regions import patches_in_regions, read_regions

        file = read_regions(path, Bounds(0, 0, 1024, 768))
        corners = np.array([[x, y] for x in range(0, 1024, 128) for y in range(0, 768, 128)], dtype=np.int64)
        patches_in_regions(corners, (128, 128), file.regions)
        bad = [r.name for r in file.regions if not (math.isfinite(r.geometry.area) and r.geometry.area > 0)]
        if (
            mutation.note == DRAWN
            and WHOLE.encode() in mutation.content
            and WHOLE not in (r.name for r in file.regions)
        ):
            return Answer(SILENT, "a right Feature was left out because of others")
        if bad or (file.skipped and not file.warnings):
            return Answer(SILENT, f"regions without an area {bad}, {file.skipped} left out without a word")
        return Answer()


class Tables(Inputs):
    """Cohort tables."""

    @cached_property
    def _text(self) -> bytes:
        rows = ["slide,patient,label,split,mpp,site"]
        for i in range(12):
            split = ("train", "train", "val", "test")[i % 4]
            name = f"slide {i}.tif"
            (self.folder / name).touch()
            rows.append(f"{name},P{i},{('normal', 'lesion')[i // 4 % 2]},{split},{'0.5' if i % 3 else ''},site {i % 2}")
        return "\n".join(rows).encode()

    def mutate(self, index: int) -> tuple[Path, Mutation]:
        content, note = mutate_table(Random(f"table {index}"), self._text)
        path = self.folder / "cohort.csv"
        path.write_bytes(content)
        return path, Mutation(content, BYTES, note)

    def answer(self, path: Path, mutation: Mutation) -> Answer:
        from lrmil_training.data.cohort import read_cohort, read_slides, require_classes
        from napari_lrmil.core.errors import LrmilError

        slides, refusals = [], []
        for read in (lambda: read_slides(path).slides, lambda: _trainable(read_cohort(path), require_classes)):
            try:
                slides += read()
            except LrmilError as error:  # the other reader is tried all the same
                refusals.append(error)
        bad = [slide.name for slide in slides if slide.mpp is not None and not 0.02 <= slide.mpp <= 100]
        if bad:
            return Answer(SILENT, f"impossible resolutions of {bad[:3]}")
        if refusals:
            raise refusals[0]
        return Answer()


def _trainable(cohort: Any, require_classes: Callable[..., None]) -> Any:
    require_classes(cohort, ("train", "val", "test"))
    return cohort.slides


# ---------------------------------------------------------------- bundles


class Bundles(Slides):
    """Bundles: values of the card, bytes of either file, and weights whose hash is renewed after their mutation."""

    def mutate(self, index: int) -> tuple[Path, Mutation]:
        from napari_lrmil.core.hashing import file_sha256
        from napari_lrmil.core.models.card import CARD, STUDENT

        random = Random(f"bundle {index}")
        source, folder = self._bundle.path, self.folder / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        text, way = (source / CARD).read_text(), random.choice(("card", "card", "card text", "weights", "weights"))
        card = json.loads(text)
        if way == "card":
            text, note = mutate_json(random, card)
            (folder / CARD).write_text(text)
        elif way == "card text":
            mutation = mutate_bytes(random, text.encode())
            (folder / CARD).write_bytes(mutation.content)
            note = mutation.note
        else:
            note = _mutate_weights(random, folder / STUDENT)
            if random.random() < 0.8:
                card["hashes"][STUDENT] = file_sha256(folder / STUDENT)
                (folder / CARD).write_text(json.dumps(card))
        return folder, Mutation(b"", TAGS if way == "card" else BYTES, f"{way}: {note}")

    def answer(self, path: Path, mutation: Mutation) -> Answer:
        from napari_lrmil.core.models.bundle import Bundle

        slide, usual = self.seeds[0], self._bundle
        self._current = slide
        try:
            self.__dict__["_bundle"] = Bundle(path)
            return super().answer(slide, mutation)
        finally:
            self.__dict__["_bundle"] = usual


def _mutate_weights(random: Random, path: Path) -> str:
    """Mutate the header of a safetensors file, its numbers, or any bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, numbers = content[8 : 8 + length], bytearray(content[8 + length :])
    way = random.choice(("header", "header", "numbers", "bytes"))
    if way == "bytes":
        mutation = mutate_bytes(random, content)
        path.write_bytes(mutation.content)
        return mutation.note
    note = way
    if way == "header":
        text, note = mutate_json(random, json.loads(header))
        header = text.encode()
    else:
        at = 2 * random.randrange(len(numbers) // 2)
        numbers[at : at + 2] = random.choice((b"\x00\x7e", b"\x00\x7c", b"\xff\x7b", b"\x00\xfc"))  # NaN, inf, largest
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(numbers))
    return f"{way}, {note}"


INPUTS: dict[str, type[Inputs]] = {
    "SVS": Svs,
    "NDPI": Ndpi,
    "DICOM": Dicom,
    "TIFF": Slides,
    "OME-TIFF": OmeTiff,
    "bundles": Bundles,
    "annotations": Annotations,
    "tables": Tables,
}
SLIDE_KINDS = ("SVS", "NDPI", "DICOM", "TIFF", "OME-TIFF")
NUMBERS = {name: 400 if name in SLIDE_KINDS else 500 for name in INPUTS}  # files of the whole campaign


def is_available(name: str) -> bool:
    """Return whether there is an undamaged file to mutate; real ones are no part of the repository."""
    kind = INPUTS[name]
    return kind not in (Ndpi, Dicom) or all((SHARED / file).exists() for file in kind.shared)  # type: ignore[attr-defined]
