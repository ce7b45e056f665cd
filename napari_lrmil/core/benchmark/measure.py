"""Measurement of one setup on one slide in a separate process: CPU and wall seconds of each step, and memory."""

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
from napari_lrmil.core.benchmark.writing import prediction_to_write, write_and_remove
from napari_lrmil.core.cohort.memory import peak_memory_mb
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished, Notice, Progress
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.features.extraction import PatchSet, embed
from napari_lrmil.core.features.prefetch import BATCH, default_batch_size
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.inference.network_input import NetworkInput, runtime_request, student_input, teacher_input
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork
from napari_lrmil.core.models.pooling import pool_instances
from napari_lrmil.core.patching.grid import TissueGrid, find_tissue_grid
from napari_lrmil.core.patching.missing_tissue import MissingTilesCheck
from napari_lrmil.core.processes import Child, ChildEndedError
from napari_lrmil.core.runtimes.select import Runtime, RuntimeChoice, prepare_runtime
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.threads import set_compute_threads

WRITE = "write"
STEPS = ("open", "tissue", "read", "encode", "mil", WRITE)
SAMPLE_RUN = (
    2 * BATCH
)  # patches side by side that a sample is made of: neighbours share tiles of the file, as in earnest


@dataclass(frozen=True)
class MeasurementSpec:
    """Settings of a measurement.

    Attributes
    ----------
    slide, mpp
        Slide file, and its resolution in µm per pixel if the file does not state it.
    bundle
        Folder of the model.
    device, threads
        Device, and number of threads for torch or OpenVINO.
    repeats
        Number of measured passes; medians are reported.
    most_patches
        Maximum number of patches to read and encode. If there are more, a sample of this size is measured, and the
        seconds of both steps are scaled up.
    allow_missing
        Whether a slide is measured of which more than a third of the tissue is missing.
    """

    slide: Path
    bundle: Path
    mpp: float | None = None
    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    most_patches: int = 2048
    allow_missing: bool = False


@dataclass
class Measurement:
    """Cost of a setup on a slide, as medians over the repeats.

    Attributes
    ----------
    setup
        Setup that was measured.
    cpu, wall
        Step -> seconds; ``total`` is their sum, ``write`` (all files, overlay included) among them.
    patches, sampled
        Number of patches of the slide, and of those that were read and encoded.
    pixels, read_bytes
        Native pixels decoded and bytes read from the file for the whole slide, the tissue mask included; bytes are None
        if the system does not count them.
    flops
        Operations of encoder and MIL for the whole slide; a multiplication and an addition count as two.
    peak_mb
        Peak memory of the process, in MB.
    reader, runtime
        Name of the reader, and the chosen runtime.
    whole_cpu, whole_wall
        CPU and wall seconds of `predict` without writing, in which reading and encoding overlap; None if `predict`
        cannot run the setup.
    notices
        What is said about missing and damaged tiles.
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
    notices: tuple[str, ...] = ()

    @property
    def analysis_cpu(self) -> float:
        """CPU-seconds of all steps but writing."""
        return self.cpu["total"] - self.cpu.get(WRITE, 0.0)

    @property
    def analysis_wall(self) -> float:
        """Wall seconds of all steps but writing."""
        return self.wall["total"] - self.wall.get(WRITE, 0.0)


def measure_all(spec: MeasurementSpec, setups: Sequence[Setup]) -> Iterator[Event]:
    """Measure setups one after the other, each in a new process.

    Yields
    ------
    Progress
        Before each setup and at the end.
    Notice
        About missing and damaged tiles.
    Finished
        With a list of `Measurement`.

    Raises
    ------
    LrmilError
        If slide or bundle cannot be used.
    """
    measurements: list[Measurement] = []
    for done, setup in enumerate(setups):
        yield Progress("measuring", done, len(setups), "setups")
        earlier = {text for measured in measurements for text in measured.notices}
        measurements.append(_measure_in_child(spec, setup))
        yield from (Notice(text, spec.slide.name) for text in measurements[-1].notices if text not in earlier)
    yield Progress("measuring", len(setups), len(setups), "setups")
    yield Finished(measurements)


def _measure_in_child(spec: MeasurementSpec, setup: Setup) -> Measurement:
    child = Child("measuring", _measure_for_parent, spec, setup)
    try:
        outcome: Measurement | Exception = child.receive()
    except ChildEndedError as error:
        reason = child.exit_text(f"the process that measured '{setup.name}'")
        raise LrmilError(f"{spec.slide}: {reason}; close other programs and call it again") from error
    finally:
        child.close()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _measure_for_parent(pipe: Connection, spec: MeasurementSpec, setup: Setup) -> None:
    """Send the measurement, or the error as text, because not every exception can be pickled."""
    try:
        pipe.send(measure(spec, setup))
    except LrmilError as error:
        pipe.send(LrmilError(str(error)))
    except Exception:
        pipe.send(RuntimeError(traceback.format_exc()))


def measure(spec: MeasurementSpec, setup: Setup) -> Measurement:
    """Return the cost of a setup, measured in this process after one warm-up pass."""
    set_compute_threads(spec.threads)
    device, bundle = resolve_device(spec.device), Bundle(spec.bundle)
    bench = _Bench(spec, setup, bundle, device)
    clocks = [bench.measure_pass(warm=True), *(bench.measure_pass() for _ in range(spec.repeats))][1:]
    last = clocks[-1]
    scale = last.patches / last.sampled  # from the sample to the whole slide
    cpu, wall = ({s: median(getattr(c, kind)[s] for c in clocks) for s in STEPS} for kind in ("cpu", "wall"))
    for seconds in (cpu, wall):
        seconds |= {step: seconds[step] * scale for step in ("read", "encode")}
        seconds["total"] = sum(seconds.values())
    measurement = Measurement(
        setup=setup,
        cpu=cpu,
        wall=wall,
        patches=last.patches,
        sampled=last.sampled,
        pixels=last.pixels["tissue"] + round(last.pixels["read"] * scale),
        read_bytes=None if last.bytes is None else last.bytes["tissue"] + round(last.bytes["read"] * scale),
        flops=bench.flops(last.side) * last.patches,
        peak_mb=0.0,  # set at the end, so that it includes `predict`
        reader=last.reader,
        runtime=bench.runtime.choice,
        notices=last.notices,
    )
    if not setup.fine and setup.encoder == STUDENT:
        measurement.whole_cpu, measurement.whole_wall = bench.measure_predict()
    measurement.peak_mb = peak_memory_mb()
    return measurement


@dataclass
class _Clock:
    """Counters of one pass over a slide: step -> CPU-seconds, wall seconds, pixels, bytes."""

    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    wall: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    pixels: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] | None = field(default_factory=dict)
    patches: int = 0
    sampled: int = 0
    side: int = 0
    reader: str = ""
    notices: tuple[str, ...] = ()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time and the bytes read inside the ``with`` block to a step."""
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
    """Return the bytes that this process has read from disk or page cache, or None if the system does not count."""
    counters = getattr(psutil.Process(), "io_counters", None)  # not on macOS
    return None if counters is None else getattr(counters(), "read_chars", None)  # Linux only


class _Bench:
    """Setup with loaded networks, ready for repeated passes over its slide."""

    def __init__(self, spec: MeasurementSpec, setup: Setup, bundle: Bundle, device: str) -> None:
        self.spec, self.setup, self.bundle, self.device = spec, setup, bundle, device
        self.network = _network(setup, bundle).to(device)
        self.mil = self.network.mil.weights()
        self.runtime = Runtime(self.network.encoder, RuntimeChoice())

    def measure_pass(self, *, warm: bool = False) -> _Clock:
        """Run all steps in sequence, from opening the slide to its files; `warm` also prepares the runtime."""
        clock = _Clock()
        with clock.step("open"):
            slide = self._open()
        with slide:
            with clock.step("tissue"):
                tissue_grid, missing = self._find_tissue(slide)
            clock.pixels["tissue"] = slide.pixels_decoded
            if warm:
                self.runtime = self._prepare_runtime(slide, tissue_grid)
            patches = self._input(tissue_grid).patches
            clock.patches = len(patches)
            patches = replace(patches, corners=patches.corners[sample_rows(len(patches), self.spec.most_patches)])
            clock.sampled, clock.side = len(patches), patches.side
            features = self._encode(slide, patches, clock)
            list(missing.notices())  # raises if the patches show that too much is damaged
            clock.notices = missing.tiles.sentences
            clock.reader = self.setup.reader if self.setup.reader == PIL else slide.reader.name
            with clock.step("mil"):
                pooled = pool_instances(self.mil, features)
            prediction = prediction_to_write(slide, self.bundle, tissue_grid.grid, self._input(tissue_grid), pooled)
            with clock.step(WRITE):
                write_and_remove(slide, prediction)
        return clock

    def _open(self) -> Slide:
        reader = "openslide" if self.setup.reader == PIL else self.setup.reader
        return Slide(self.spec.slide, mpp=self.spec.mpp, reader=reader)

    def _find_tissue(self, slide: Slide) -> tuple[TissueGrid, MissingTilesCheck]:
        """Return the tissue of a slide, and the check of its missing tiles, as `predict` does."""
        slide.count_damaged_tiles()
        tissue_grid = find_tissue_grid(slide, self.bundle.card.plan, self.bundle.card.tissue)
        size = self._input(tissue_grid).patches.patch_size
        missing = MissingTilesCheck(slide, tissue_grid.tissue, [size], allow=self.spec.allow_missing)
        list(missing.notices())  # raises if too much is missing; the notices are told at the end
        return tissue_grid, missing

    def _input(self, tissue_grid: TissueGrid) -> NetworkInput:
        return (teacher_input if self.setup.fine else student_input)(self.bundle.card, tissue_grid.grid)

    def _encode(self, slide: Slide, patches: PatchSet, clock: _Clock) -> np.ndarray:
        read, count_pixels = self._open_reader(slide, patches)
        parts = []
        # The batch size of usual pipelines for the baseline, and of `predict` for the other setups.
        batch = BATCH if self.setup.encoder == RESNET else default_batch_size(patches.side)
        for start in range(0, len(patches), BATCH):
            with clock.step("read"):
                pixels = read(slice(start, start + BATCH))
            with clock.step("encode"):
                for i in range(0, len(pixels), batch):
                    parts.append(embed(self.runtime.embedder, pixels[i : i + batch], patches.input_px, self.device))
        clock.pixels["read"] = count_pixels()
        return np.concatenate(parts)

    def _open_reader(self, slide: Slide, patches: PatchSet) -> tuple[Callable[[slice], np.ndarray], Callable[[], int]]:
        """Return a function that reads rows of patches, and one that closes the reader and returns its pixel count."""
        if self.setup.reader != PIL:
            start = slide.pixels_decoded
            return lambda rows: patches.read(slide, rows), lambda: slide.pixels_decoded - start
        reader = PilReader(slide, patches)

        def close_and_count() -> int:
            reader.close()
            return reader.pixels_decoded

        return reader.read, close_and_count

    def _prepare_runtime(self, slide: Slide, tissue_grid: TissueGrid) -> Runtime:
        """Return a runtime that is checked as in `predict`: the student on LR patches, at both resolutions."""
        if isinstance(self.network, _BaselineNetwork):
            return self.runtime
        card, patches = self.bundle.card, self._input(tissue_grid).patches
        network_input = (student_input if self.setup.encoder == STUDENT else teacher_input)(card, tissue_grid.grid)
        if network_input.patches.side != patches.side:  # a runtime accepts patches of one size only
            network_input = replace(network_input, patches=patches)
        request = runtime_request(slide, self.bundle, network_input, self.device)
        return prepare_runtime(self.setup.runtime, request)

    def flops(self, side: int) -> float:
        """Return the number of operations for one patch of `side` pixels."""
        from torch.utils.flop_counter import FlopCounterMode

        pixels = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=self.device)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            self.network.mil(self.network.encoder(pixels).embedding)
        return float(counted.get_total_flops())

    def measure_predict(self) -> tuple[float, float]:
        """Return the median CPU and wall seconds of `predict`, including the opening of the slide."""
        cpu, wall = [], []
        for _ in range(self.spec.repeats):
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            with self._open() as slide:
                events = predict(
                    slide,
                    self.bundle,
                    device=self.device,
                    runtime=self.setup.runtime,
                    allow_missing=self.spec.allow_missing,
                )
                for _event in events:
                    pass
            cpu.append(time.process_time() - cpu_start)
            wall.append(time.perf_counter() - wall_start)
        return median(cpu), median(wall)


class _BaselineNetwork(nn.Module):
    """Untrained ResNet-50 and MIL of the baseline pipeline."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder, self.mil = ResNetEmbedder(), GatedAttentionMIL(RESNET_DIM, classes).eval().requires_grad_(False)


def _network(setup: Setup, bundle: Bundle) -> StudentNetwork | TeacherNetwork | _BaselineNetwork:
    if setup.encoder == RESNET:
        return _BaselineNetwork(len(bundle.card.classes))
    return bundle.student if setup.encoder == STUDENT else bundle.teacher


def sample_rows(total: int, limit: int) -> Int64:
    """Return the rows to measure: all of them, or about `limit`, in evenly spread runs of neighbours."""
    if total <= limit:
        return np.arange(total, dtype=np.int64)
    runs = max(1, limit // SAMPLE_RUN)
    starts = np.linspace(0, total - SAMPLE_RUN, runs).round().astype(np.int64)
    return np.unique((starts[:, None] + np.arange(SAMPLE_RUN)).ravel())
