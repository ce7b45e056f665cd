"""Measures one setup on one slide in a process of its own: CPU-seconds and wall seconds of every step, and memory."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from torch import nn

from napari_lrmil.core.benchmark.baseline import RESNET_DIM, PilReader, ResNetEmbedder
from napari_lrmil.core.benchmark.setups import PIL, RESNET, STUDENT, Setup
from napari_lrmil.core.cohort.memory import peak_memory_mb
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished, Progress
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.features.extraction import PatchSet, encode, to_numpy
from napari_lrmil.core.features.prefetch import BATCH, default_batch_size
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.inference.predict import predict, runtime_request, student_input, teacher_input
from napari_lrmil.core.models.bundle import Bundle, StudentNetwork, TeacherNetwork
from napari_lrmil.core.models.mil import GatedAttentionMIL, pool_bag
from napari_lrmil.core.patching.grid import TissueGrid, find_tissue_grid
from napari_lrmil.core.processes import Child, ChildEndedError
from napari_lrmil.core.runtimes.select import Runtime, RuntimeChoice, prepare_runtime
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.overlay import COLORMAP, rasterize_patches

STEPS = ("open", "tissue", "read", "encode", "mil", "overlay")
SAMPLE_RUN = (
    2 * BATCH
)  # patches side by side that a sample is made of: neighbours share tiles of the file, as in earnest


@dataclass(frozen=True)
class MeasurementSpec:
    """What is measured, and how.

    Attributes
    ----------
    slide, mpp
        The file, and its resolution where it does not say.
    bundle
        The model.
    device, threads
        Where, and how many threads torch or OpenVINO may use.
    repeats
        How often; medians are told.
    most_patches
        Of more patches than this only a sample is read and encoded, and the seconds of both are scaled up.
    """

    slide: Path
    bundle: Path
    mpp: float | None = None
    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    most_patches: int = 2048


@dataclass
class Measurement:
    """What a setup costs on a slide: medians over the repeats.

    Attributes
    ----------
    setup
        Which.
    cpu, wall
        Step -> seconds; ``total`` is their sum.
    patches, sampled
        How many the slide has, and how many were read and encoded.
    pixels, read_bytes
        Native pixels decoded and bytes read from the file for the whole slide, the tissue mask included; bytes are None
        where the system does not tell.
    flops
        Of encoder and MIL for the whole slide, a multiplication and an addition counted as two.
    peak_mb
        Most memory that its process held.
    reader, runtime
        What read and what ran, with reasons.
    whole_cpu, whole_wall
        Of `predict` itself, where reading and encoding overlap; None where it does not run this setup.
    """

    setup: Setup
    cpu: dict[str, float]
    wall: dict[str, float]
    patches: int
    sampled: int
    pixels: int
    read_bytes: int | None
    flops: float
    peak_mb: float
    reader: str
    runtime: RuntimeChoice
    whole_cpu: float | None = None
    whole_wall: float | None = None


def measure_all(question: MeasurementSpec, setups: Sequence[Setup]) -> Iterator[Event]:
    """Measure setups one after the other, each in a new process, and finish with a list of `Measurement`.

    Raises
    ------
    LrmilError
        Where slide or bundle cannot be used.
    """
    found: list[Measurement] = []
    for done, setup in enumerate(setups):
        yield Progress("measuring", done, len(setups), "setups")
        found.append(_measured_elsewhere(question, setup))
    yield Progress("measuring", len(setups), len(setups), "setups")
    yield Finished(found)


def _measured_elsewhere(question: MeasurementSpec, setup: Setup) -> Measurement:
    child = Child("measuring", _measure_for_parent, question, setup)
    try:
        outcome: Measurement | Exception = child.receive()
    except ChildEndedError as error:
        how = child.exit_text(f"the process that measured '{setup.name}'")
        raise LrmilError(f"{question.slide}: {how}; close other programs and call it again") from error
    finally:
        child.close()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _measure_for_parent(pipe: Connection, question: MeasurementSpec, setup: Setup) -> None:
    """Send what was measured, or what went wrong in words: not every error can travel between processes."""
    try:
        pipe.send(measure(question, setup))
    except LrmilError as error:
        pipe.send(LrmilError(str(error)))
    except Exception:
        pipe.send(RuntimeError(traceback.format_exc()))


def measure(question: MeasurementSpec, setup: Setup) -> Measurement:
    """Return what a setup costs, measured in this process after everything has been loaded and run once."""
    torch.set_num_threads(question.threads)
    device, bundle = resolve_device(question.device), Bundle(question.bundle)
    bench = _Bench(question, setup, bundle, device)
    clocks = [bench.pass_over(warm=True), *(bench.pass_over() for _ in range(question.repeats))][1:]
    last = clocks[-1]
    share = last.patches / last.sampled  # of the whole slide to the sample
    cpu, wall = ({s: median(getattr(c, kind)[s] for c in clocks) for s in STEPS} for kind in ("cpu", "wall"))
    for seconds in (cpu, wall):
        seconds |= {step: seconds[step] * share for step in ("read", "encode")}
        seconds["total"] = sum(seconds.values())
    found = Measurement(
        setup=setup,
        cpu=cpu,
        wall=wall,
        patches=last.patches,
        sampled=last.sampled,
        pixels=last.pixels["tissue"] + round(last.pixels["read"] * share),
        read_bytes=None if last.bytes is None else last.bytes["tissue"] + round(last.bytes["read"] * share),
        flops=bench.flops(last.side) * last.patches,
        peak_mb=0.0,
        reader=last.reader,
        runtime=bench.runtime.choice,
    )
    if not setup.fine and setup.encoder == STUDENT:
        found.whole_cpu, found.whole_wall = bench.as_predict_runs()
    found.peak_mb = peak_memory_mb()
    return found


@dataclass
class _Clock:
    """One pass over a slide: step -> CPU-seconds, wall seconds, pixels, bytes."""

    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    wall: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    pixels: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] | None = field(default_factory=dict)
    patches: int = 0
    sampled: int = 0
    side: int = 0
    reader: str = ""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add what the process does meanwhile to a step."""
        cpu, wall, read = time.process_time(), time.perf_counter(), _bytes_read()
        yield
        self.cpu[name] += time.process_time() - cpu
        self.wall[name] += time.perf_counter() - wall
        after = _bytes_read()
        if read is None or after is None or self.bytes is None:
            self.bytes = None
        else:
            self.bytes[name] = self.bytes.get(name, 0) + after - read


def _bytes_read() -> int | None:
    """Return what this process has read so far, from the disk or the system's cache; None where nobody counts it."""
    counters = getattr(psutil.Process(), "io_counters", None)  # not on macOS
    return None if counters is None else getattr(counters(), "read_chars", None)  # Linux alone


class _Bench:
    """A setup that is ready to go over its slide again and again."""

    def __init__(self, question: MeasurementSpec, setup: Setup, bundle: Bundle, device: torch.device) -> None:
        self.question, self.setup, self.bundle, self.device = question, setup, bundle, device
        self.network = _network(setup, bundle).to(device)
        self.runtime = Runtime(self.network.encoder, RuntimeChoice())

    def pass_over(self, *, warm: bool = False) -> _Clock:
        """Go from opening the slide to the overlay, one step after the other; `warm` prepares the runtime too."""
        clock = _Clock()
        with clock.step("open"):
            slide = self._open()
        with slide:
            with clock.step("tissue"):
                ground = find_tissue_grid(slide, self.bundle.card.plan, self.bundle.card.tissue)
            clock.pixels["tissue"] = slide.pixels_decoded
            if warm:
                self.runtime = self._prepared(slide, ground)
            patches = self._patches(ground)
            clock.patches = len(patches)
            patches = replace(patches, corners=patches.corners[sample_rows(len(patches), self.question.most_patches)])
            clock.sampled, clock.side = len(patches), patches.side
            features = self._encoded(slide, patches, clock)
            clock.reader = self.setup.reader if self.setup.reader == PIL else slide.reader.name
        with clock.step("mil"):
            pooled = pool_bag(self.network.mil, features, self.device)
        with clock.step("overlay"):
            _overlay(patches, pooled.attention)
        return clock

    def _open(self) -> Slide:
        reader = "openslide" if self.setup.reader == PIL else self.setup.reader
        return Slide(self.question.slide, mpp=self.question.mpp, reader=reader)

    def _patches(self, ground: TissueGrid) -> PatchSet:
        look = teacher_input if self.setup.fine else student_input
        return look(self.bundle.card, ground.grid).patches

    def _encoded(self, slide: Slide, patches: PatchSet, clock: _Clock) -> np.ndarray:
        read, before = self._reading(slide, patches)
        parts = []
        most = (
            BATCH if self.setup.encoder == RESNET else default_batch_size(patches.side)
        )  # as such pipelines, and as ours, do it
        for start in range(0, len(patches), BATCH):
            with clock.step("read"):
                pixels = read(slice(start, start + BATCH))
            with clock.step("encode"):
                for at in range(0, len(pixels), most):
                    encoded = encode(self.runtime.embedder, pixels[at : at + most], patches.input_px, self.device)
                    parts.append(to_numpy(encoded.embedding))
        clock.pixels["read"] = before()
        return np.concatenate(parts)

    def _reading(self, slide: Slide, patches: PatchSet) -> tuple[Callable[[slice], np.ndarray], Callable[[], int]]:
        """Return what reads rows of patches, and what tells how many pixels that took, closing what it opened."""
        if self.setup.reader != PIL:
            start = slide.pixels_decoded
            return lambda rows: patches.read(slide, rows), lambda: slide.pixels_decoded - start
        reader = PilReader(slide, patches)

        def end() -> int:
            reader.close()
            return reader.pixels_decoded

        return reader.read, end

    def _prepared(self, slide: Slide, ground: TissueGrid) -> Runtime:
        """Return a runtime that was compared as `predict` does it: the student on LR patches, at either resolution."""
        if isinstance(self.network, _BaselineNetwork):
            return self.runtime
        card, patches = self.bundle.card, self._patches(ground)
        look = (student_input if self.setup.encoder == STUDENT else teacher_input)(card, ground.grid)
        if look.patches.side != patches.side:  # a runtime is made for patches of one size
            look = replace(look, patches=patches)
        subject = runtime_request(slide, self.bundle, self.network, look)
        return prepare_runtime(self.setup.runtime, subject, self.device)

    def flops(self, side: int) -> float:
        """Return the operations for one patch of so many pixels a side."""
        from torch.utils.flop_counter import FlopCounterMode

        pixels = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=self.device)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            self.network.mil(self.network.encoder(pixels).embedding)
        return float(counted.get_total_flops())

    def as_predict_runs(self) -> tuple[float, float]:
        """Return CPU and wall seconds of `predict` itself, from opening the slide; medians."""
        cpu, wall = [], []
        for _ in range(self.question.repeats):
            at = time.process_time(), time.perf_counter()
            with self._open() as slide:
                for _event in predict(slide, self.bundle, device=self.device, runtime=self.setup.runtime):
                    pass
            cpu.append(time.process_time() - at[0])
            wall.append(time.perf_counter() - at[1])
        return median(cpu), median(wall)


class _BaselineNetwork(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder, self.mil = ResNetEmbedder(), GatedAttentionMIL(RESNET_DIM, classes).eval().requires_grad_(False)


def _network(setup: Setup, bundle: Bundle) -> StudentNetwork | TeacherNetwork | _BaselineNetwork:
    if setup.encoder == RESNET:
        return _BaselineNetwork(len(bundle.card.classes))
    return bundle.student if setup.encoder == STUDENT else bundle.teacher


def sample_rows(total: int, most: int) -> Int64:
    """Return the rows to measure: all of them, or about `most`, in runs of neighbours that are spread evenly."""
    if total <= most:
        return np.arange(total, dtype=np.int64)
    runs = max(1, most // SAMPLE_RUN)
    starts = np.linspace(0, total - SAMPLE_RUN, runs).round().astype(np.int64)
    return np.unique((starts[:, None] + np.arange(SAMPLE_RUN)).ravel())


def _overlay(patches: PatchSet, attention: np.ndarray) -> object:
    """Return the coloured map that is laid over the slide, a pixel per patch; it is made for what that costs."""
    from matplotlib import colormaps

    image = rasterize_patches(_Placed(patches.corners, patches.size_level0), attention * len(attention)).image
    return colormaps[COLORMAP](np.nan_to_num(image / max(2.0, float(np.nanpercentile(image, 99)))))


@dataclass(frozen=True)
class _Placed:
    coords: Int64
    patch_level0: tuple[int, int]
