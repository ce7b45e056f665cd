"""Slides for tests: an array behind the `Handle` protocol that reads as OpenSlide does, and TIFFs for the real one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from napari_lrmil.core.encoders import AlignedEncoder, EncoderOutput, round_to_half
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import Card, NetworkCard
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork, write_bundle
from napari_lrmil.core.slides.slide import Slide
from support.networks import CLASSES, SMALL, untrained_encoder

Array = NDArray[Any]
Network = TypeVar("Network", bound=nn.Module)

GLASS = (244, 243, 245)
TISSUE = (214, 140, 188)
OPENED: Counter[str] = (
    Counter()
)  # file name -> how often a fake was opened; survives pickling, unlike the fake's own state


def span_means(length: int, edges: Sequence[float] | Array) -> Array:
    """Return the float64 (len(edges) - 1, length) matrix that averages unit pixels between neighbouring edges.

    Deliberately another algorithm than the one under test: the difference of two clipped running integrals.
    """
    edges = np.asarray(edges, dtype=np.float64)
    integral = np.clip(edges[:, None] - np.arange(length)[None, :], 0.0, 1.0)  # share of each pixel left of each edge
    return np.diff(integral, axis=0) / np.diff(edges)[:, None]


def area_reference(image: Array, box: tuple[float, float, float, float], size: tuple[int, int]) -> Array:
    """Return `image` averaged over `box` (x, y, width, height in its pixels) to `size` (width, height), float64."""
    x, y, width, height = box
    across = span_means(image.shape[1], np.linspace(x, x + width, size[0] + 1))
    down = span_means(image.shape[0], np.linspace(y, y + height, size[1] + 1))
    rows = np.tensordot(down, image.astype(np.float64), axes=(1, 0))
    result: Array = np.tensordot(rows, across, axes=(1, 1)).transpose(0, 2, 1)
    return result


def reduced(base: Array, downsample: float) -> Array:
    """Return `base` reduced by a downsample that need not be whole."""
    height, width = int(base.shape[0] / downsample), int(base.shape[1] / downsample)
    if downsample == int(downsample):
        k = int(downsample)
        blocks = base[: height * k, : width * k].reshape(height, k, width, k, -1)
        return np.rint(blocks.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
    box = (0.0, 0.0, width * downsample, height * downsample)
    return np.rint(area_reference(base, box, (width, height))).astype(np.uint8)


@dataclass
class FakeSlide:
    """What is in the file; called with a path it opens a handle, so it serves as a `Slide`'s opener.

    Attributes
    ----------
    base
        (H, W, 3) RGB or (H, W, 4) RGBA, not premultiplied.
    downsamples
        Of each level, as the file states them.
    properties
        OpenSlide's properties.
    reads
        Every (location, level, size) that was asked of any of its handles.
    before_read
        Called before each read, in the reading thread.
    color_profile
        ICC profile, as ``PIL.ImageCms`` has it.
    """

    base: Array
    downsamples: tuple[float, ...] = (1.0,)
    properties: dict[str, str] = field(default_factory=dict)
    reads: list[tuple[tuple[int, int], int, tuple[int, int]]] = field(default_factory=list)
    before_read: Callable[[], None] | None = None
    handles: list[FakeHandle] = field(default_factory=list)
    color_profile: Any = None

    def __post_init__(self) -> None:
        self.levels = [self.base if d == 1 else reduced(self.base, d) for d in self.downsamples]

    def __call__(self, path: Path) -> FakeHandle:
        OPENED[path.name] += 1
        self.handles.append(FakeHandle(self))
        return self.handles[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Let copies and pickles share the pixels and nothing that was recorded."""
        return {**self.__dict__, "handles": [], "reads": [], "before_read": None}


class FakeHandle:
    """An open `FakeSlide`. Between pixels it interpolates and past the edge it is transparent, as OpenSlide."""

    def __init__(self, fake: FakeSlide) -> None:
        self.fake = fake
        self.closed = False
        self.reading = 0
        self.closed_while_reading = False
        self._lock = threading.Lock()
        self.level_dimensions = tuple((level.shape[1], level.shape[0]) for level in fake.levels)
        self.dimensions = self.level_dimensions[0]
        self.level_downsamples = fake.downsamples
        self.properties = fake.properties
        self.associated_images: dict[str, Any] = {}
        self.color_profile = fake.color_profile

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        with self._lock:
            self.reading += 1
        try:
            assert not self.closed, "a read met a handle that had been closed"
            assert all(isinstance(v, int) for v in (*location, level, *size)), "OpenSlide takes whole numbers"
            self.fake.reads.append((location, level, size))
            if self.fake.before_read is not None:
                self.fake.before_read()
            return Image.fromarray(self._pixels(location, level, size), "RGBA")
        finally:
            with self._lock:
                self.reading -= 1

    def _pixels(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Array:
        at = [v / self.fake.downsamples[level] for v in location]
        whole = [int(np.floor(v + 1e-9)) for v in at]
        x, y = (max(0.0, a - w) for a, w in zip(at, whole, strict=True))
        if x == y == 0 and self.fake.base.shape[2] == 3:
            return self._opaque(self.fake.levels[level], whole, size)
        patch = self._premultiplied(self.fake.levels[level], whole, size)
        patch = (1 - y) * patch[:-1] + y * patch[1:]
        patch = (1 - x) * patch[:, :-1] + x * patch[:, 1:]
        alpha = patch[..., 3:]
        rgb = np.divide(patch[..., :3] * 255, alpha, out=np.zeros_like(patch[..., :3]), where=alpha > 0)
        return np.rint(np.concatenate([rgb, alpha], axis=2)).clip(0, 255).astype(np.uint8)

    def _opaque(self, pixels: Array, corner: Sequence[int], size: tuple[int, int]) -> Array:
        """Return the same on whole pixels without transparency, for speed."""
        out = np.zeros((size[1], size[0], 4), dtype=np.uint8)
        (x, y), (height, width) = corner, pixels.shape[:2]
        left, top, right, bottom = max(0, x), max(0, y), min(width, x + size[0]), min(height, y + size[1])
        if right > left and bottom > top:
            out[top - y : bottom - y, left - x : right - x, :3] = pixels[top:bottom, left:right]
            out[top - y : bottom - y, left - x : right - x, 3] = 255
        return out

    def _premultiplied(self, pixels: Array, corner: Sequence[int], size: tuple[int, int]) -> Array:
        out = np.zeros((size[1] + 1, size[0] + 1, 4), dtype=np.float64)
        height, width = pixels.shape[:2]
        (x, y), (columns, rows) = corner, size
        left, top, right, bottom = max(0, x), max(0, y), min(width, x + columns + 1), min(height, y + rows + 1)
        if right > left and bottom > top:
            part = pixels[top:bottom, left:right].astype(np.float64)
            alpha = part[..., 3:] if part.shape[2] == 4 else np.full((*part.shape[:2], 1), 255.0)
            out[top - y : bottom - y, left - x : right - x] = np.concatenate(
                [part[..., :3] * alpha / 255, alpha], axis=2
            )
        return out

    def close(self) -> None:
        self.closed_while_reading = self.closed_while_reading or self.reading > 0
        self.closed = True


def fake_slide(
    folder: Path, fake: FakeSlide, name: str = "fake.svs", mpp: float | None = None, **options: Any
) -> Slide:
    """Return an open `Slide` on a fake; the file exists, so that its path can be checked."""
    path = folder / name
    path.touch()
    return Slide(path, opener=fake, mpp=mpp, **options)


def resolution(x: float, y: float | None = None) -> dict[str, str]:
    """Return properties with a resolution and a hash, as a scanner's file has them."""
    return {"openslide.mpp-x": str(x), "openslide.mpp-y": str(y or x), "openslide.quickhash-1": "f" * 64}


def write_tiff(
    path: Path, base: Array, downsamples: Sequence[float] = (1.0,), mpp: tuple[float, float] | None = None
) -> Path:
    """Write a lossless pyramidal TIFF that OpenSlide opens; `mpp` goes into the resolution tags."""
    import tifffile

    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    tags: dict[str, Any] = {}
    if mpp is not None:
        tags = {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for downsample in downsamples:
            level = base if downsample == 1 else reduced(base, downsample)
            file.write(np.ascontiguousarray(level), subfiletype=int(downsample != 1), **options, **tags)
    return path


def glass(width: int, height: int) -> Array:
    """Return an empty slide."""
    return np.full((height, width, 3), GLASS, dtype=np.uint8)


def l_shape(width: int, height: int, arm: tuple[int, int]) -> Array:
    """Return glass with an L of tissue: an upright at the left `arm[0]` wide, a foot at the bottom `arm[1]` high."""
    pixels = glass(width, height)
    pixels[:, : arm[0]] = TISSUE
    pixels[height - arm[1] :, :] = TISSUE
    return pixels


def speckled(width: int, height: int, seed: int = 0) -> Array:
    """Return tissue whose patches differ from one another: coarse random colour blocks over the tissue's colour."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(-40, 40, (-(-height // 64), -(-width // 64), 3))
    blocks = np.kron(coarse, np.ones((64, 64, 1), dtype=int))[:height, :width]
    return (np.array(TISSUE) + blocks).clip(0, 255).astype(np.uint8)


def lively(network: Network, seed: int = 0) -> Network:
    """Return a network whose untrained weights keep a signal alive; as built, MobileNetV2 answers 1e-26 to all."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    return network


def lively_bundle(folder: Path, *, teacher: bool = True, **card: Any) -> Bundle:
    """Write a bundle of seeded networks that do react to their pixels: HR and LR patches of 64 px, n = 4."""
    torch.manual_seed(7)
    encoder = lively(untrained_encoder(1), 1)
    student = StudentNetwork(AlignedEncoder(encoder, encoder.dim), GatedAttentionMIL(encoder.dim, 2))
    other = TeacherNetwork(lively(untrained_encoder(2), 2), GatedAttentionMIL(encoder.dim, 2)) if teacher else None
    for network in filter(None, (student, other)):
        round_to_half(network)
    fields = {"name": "lively", "classes": CLASSES, "hr_mpp": 0.5, "lr_mpp": 2.0, "hr_patch_px": 64, "lr_patch_px": 64}
    return write_bundle(folder, fields | card, student, other)


class Darkness(nn.Module):
    """Stands in for an encoder: how dark a patch is, and how bright."""

    def forward(self, pixels: torch.Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        bright = pixels.float().mean(dim=(1, 2, 3)) / 255
        return EncoderOutput(torch.stack([1 - bright, bright], dim=1), {})


class DarknessBundle:
    """Stands in for a bundle: attention grows with the darkness of the patch, and so does the class `lesion`."""

    name, sha256, has_teacher, teacher_notice = "darkness", "d" * 64, True, None
    embedding_statistics = limits = None

    def __init__(self, **card: Any) -> None:
        self.prepared: dict[Any, Any] = {}
        network = NetworkCard(encoder=SMALL, dim=2, hidden=1)
        fields = {
            "hr_mpp": 0.5,
            "lr_mpp": 2.0,
            "hr_patch_px": 64,
            "lr_patch_px": 64,
            "student": network,
            "teacher": network,
        }
        self.card = Card(schema_version=1, name="darkness", version="0", classes=CLASSES, hashes={}, **fields | card)
        mil = GatedAttentionMIL(2, 2, 1)
        with torch.no_grad():
            mil.V.weight.copy_(torch.tensor([[1.0, 0.0]]))
            mil.U.weight.zero_()
            mil.V.bias.zero_()
            mil.U.bias.fill_(9.0)
            mil.w.weight.fill_(40.0)
            mil.classifier.weight.copy_(torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
            mil.classifier.bias.copy_(torch.tensor([0.3, -0.4]))
        self.student = StudentNetwork(Darkness(), mil).eval()  # type: ignore[arg-type]  # a stand-in
        self.teacher = TeacherNetwork(Darkness(), mil).eval()  # type: ignore[arg-type]  # a stand-in
        self.student_mil = self.teacher_mil = mil.weights()

    def require_teacher(self) -> NetworkCard:
        """Return the teacher's card."""
        assert self.card.teacher is not None
        return self.card.teacher


def one_sentence(error: BaseException) -> bool:
    """Whether a message is something to show: one line, not a wall of text, no traceback or object address."""
    text = str(error)
    return "\n" not in text and 20 < len(text) < 600 and " at 0x" not in text and "Traceback" not in text
