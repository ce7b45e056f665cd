"""What runs the encoder: torch, whose numbers are the reference, or something faster that was seen to agree with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_lrmil.core.encoders import CONVOLUTIONAL, FROZEN, EncoderOutput
from napari_lrmil.core.errors import ConfigError, EncoderError
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.features.extraction import Embedder, encode, to_numpy
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.metrics.agreement import spearman
from napari_lrmil.core.models.bundle import Prepared, StudentNetwork, TeacherNetwork
from napari_lrmil.core.runtimes import agreement_cache as verdicts
from napari_lrmil.core.runtimes import openvino as converted
from napari_lrmil.core.runtimes.agreement_cache import AgreementCheck, RuntimeKey
from napari_lrmil.core.runtimes.openvino import OpenVinoEmbedder
from napari_lrmil.core.runtimes.optimize import fold_batch_norm, round_weights_to_bfloat16

RUNTIMES = ("auto", "torch", "openvino")
MIN_SPEARMAN = 0.999  # of attention, between a fast runtime and torch
MAX_PROBABILITY_DIFFERENCE = 1e-2  # of a class's probability
SAMPLE_PIXELS = 2**22  # in patches that are compared, from all over the slide: more patches, a surer Spearman
SAMPLE_SIZE_RANGE = (64, 256)  # fewest and most of them, whatever their size
MIN_CHECK_PATCHES = 32  # patches whose comparison is worth making, and is remembered: two or three tell little
FOLDING_CHECK_PATCHES = 4  # patches that show whether a network with its norms folded is the same
FOLDING_TOLERANCE = 1e-3  # of the largest embedding: what another order of additions may change


@dataclass(frozen=True)
class RuntimeChoice:
    """What ran an encoder, as ``prediction.json`` tells it.

    Attributes
    ----------
    name
        ``torch`` or ``openvino``.
    precision
        Number format in which it computed: ``float32`` or ``bfloat16``.
    reason
        Why it was this one, in words.
    """

    name: str = "torch"
    precision: str = "float32"
    reason: str = "asked for"

    @property
    def numbers(self) -> str:
        """Tells embeddings of this runtime from others; those of torch in float32 are called by their format alone."""
        return self.precision if self.name == "torch" else f"{self.precision} {self.name}"


REFERENCE = RuntimeChoice()


@dataclass(frozen=True)
class Runtime:
    """An encoder that is ready to be called."""

    embedder: Embedder
    choice: RuntimeChoice


@dataclass(frozen=True)
class RuntimeRequest:
    """What is to be run, and what it is compared on.

    Attributes
    ----------
    network
        Encoder and MIL, on the device.
    identity
        Hash of the model, and which of its encoders.
    side
        Of a patch as the encoder gets it, in pixels.
    temperature
        Divides the logits, where probabilities are calibrated.
    patches
        How many are to be encoded.
    pixels
        Returns (n, h, w, 3) patches of the slide; called only where a comparison has to be made.
    prepared
        What this process has ready already.
    """

    network: StudentNetwork | TeacherNetwork
    identity: str
    side: int
    temperature: float | None
    patches: int
    pixels: Callable[[], NDArray[np.uint8]]
    prepared: Prepared

    @cached_property
    def sample(self) -> NDArray[np.uint8]:
        """(n, h, w, 3) patches to compare on."""
        return self.pixels()

    @cached_property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.mil.parameters()).device

    @cached_property
    def folded(self) -> Any:
        """The encoder with its batch norms folded; itself where it has none, for a copy may be large.

        Raises
        ------
        EncoderError
            Where that is another network: modules that follow each other are not used so.
        """
        encoder = self.network.encoder
        made = _fold_if_normed(encoder)
        if made is encoder:
            return made
        wanted, found = (self.embedded(e, FOLDING_CHECK_PATCHES) for e in (encoder, made))
        if not np.allclose(wanted, found, rtol=0, atol=FOLDING_TOLERANCE * float(np.abs(wanted).max())):
            raise EncoderError("this encoder cannot be folded")
        return made

    @cached_property
    def reference(self) -> Features:
        """(n, D) embeddings of the sample by torch in float32."""
        return self.embedded(self.folded)

    def embedded(self, embedder: Embedder, most: int | None = None) -> Features:
        """Return (n, D) embeddings of the sample, or of its first few patches, by another runtime."""
        pixels, size = self.sample[:most], default_batch_size(self.side)
        parts = (pixels[i : i + size] for i in range(0, len(pixels), size))
        return np.concatenate([to_numpy(encode(embedder, part, self.side, self.device).embedding) for part in parts])


def require_runtime(asked: str, device: torch.device | None) -> None:
    """Check that a runtime can be asked for at all, before any slide is opened.

    Parameters
    ----------
    asked
        One of `RUNTIMES`.
    device
        Where it will run; None: on another machine, of which nothing is known here.

    Raises
    ------
    ConfigError
        Where there is none of that name, it is not installed, or it does not run on the device.
    """
    if asked not in RUNTIMES:
        raise ConfigError(f"no runtime '{asked}'; there are: {', '.join(RUNTIMES)}")
    if asked != "openvino" or device is None:
        return
    if not converted.is_installed():
        raise ConfigError(
            "--runtime openvino: OpenVINO is not installed; pip install 'napari-lrmil[openvino]', or take torch or auto"
        )
    if device.type != "cpu":
        raise ConfigError(f"--runtime openvino runs on the CPU, not on {device}; add --device cpu, or take auto")


def prepare_runtime(asked: str, subject: RuntimeRequest, device: torch.device) -> Runtime:
    """Return the fastest runtime that may be used and agrees with torch in float32; that itself where none does.

    Parameters
    ----------
    asked
        ``torch``; ``openvino``; or ``auto``: on a CPU OpenVINO for convolutional encoders where it is installed, else
        torch with batch norm folded; on CUDA torch. Each in bfloat16 first, where the device multiplies that.
    subject
        What is to be run.
    device
        Where.

    Raises
    ------
    ConfigError
        See `require_runtime`.
    """
    require_runtime(asked, device)
    encoder = subject.network.encoder
    if asked == REFERENCE.name:
        return Runtime(encoder, REFERENCE)
    if (
        asked == "auto" and subject.patches < MIN_CHECK_PATCHES
    ):  # whatever others have shown: which came first must not matter
        few = f"{subject.patches} patches are too few to compare by, and soon done"
        return Runtime(encoder, RuntimeChoice(reason=few))
    notes, ways = candidate_runtimes(asked, subject, device)
    for way in ways:
        try:
            made = evaluate_candidate(subject, way)
        except EncoderError as error:
            notes.append(f"{_title(way)}: {error}")
            continue
        if made.verdict.agrees and made.embedder is not None:
            return Runtime(
                made.embedder, RuntimeChoice(way.runtime, way.precision, "; ".join([*notes, made.verdict.reason]))
            )
        notes.append(f"{_title(way)} was refused: {made.verdict.reason}")
    return Runtime(encoder, RuntimeChoice(reason="; ".join(notes)))


def _title(way: RuntimeKey) -> str:
    return f"{'OpenVINO' if way.runtime == 'openvino' else way.runtime} in {way.precision}"


def candidate_runtimes(asked: str, subject: RuntimeRequest, device: torch.device) -> tuple[list[str], list[RuntimeKey]]:
    """Return why some ways are not tried, and those that are, the fastest first."""
    family = getattr(getattr(subject.network.encoder, "spec", None), "family", "unknown")
    if device.type not in ("cpu", "cuda"):
        return [f"on {device} torch in float32 is the only runtime"], []
    if family in (FROZEN, "unknown") and device.type == "cpu":
        return [f"an encoder of the family {family} is left to torch"], []
    notes: list[str] = []
    ways: list[tuple[str, str, str]] = []
    if device.type == "cpu" and not converted.is_installed():
        notes.append("OpenVINO is not installed")
    elif device.type == "cpu" and (asked == "openvino" or family in CONVOLUTIONAL):
        ways += [("openvino", converted.version(), precision) for precision in converted.supported_precisions()]
    if asked == "auto":
        half = verdicts.has_native_bfloat16(device)
        ways += [("torch", torch.__version__, precision) for precision in ("bfloat16", "float32")[not half :]]
    name = verdicts.describe_processor(device)
    return notes, [RuntimeKey(subject.identity, subject.side, *way, name) for way in ways]


@dataclass(frozen=True)
class CandidateResult:
    """A way to run an encoder, in this process.

    Attributes
    ----------
    embedder
        What embeds; None where an earlier process refused it.
    verdict
        Whether it agrees.
    model
        The converted one, until the verdict is kept.
    """

    embedder: Embedder | None
    verdict: AgreementCheck
    model: Any = None


def evaluate_candidate(subject: RuntimeRequest, way: RuntimeKey) -> CandidateResult:
    """Return a way that was compared: by this process, by an earlier one, or now.

    Raises
    ------
    EncoderError
        Where the encoder cannot be run that way.
    """
    known: CandidateResult | None = subject.prepared.get(way)
    if known is not None and known.verdict.patches >= MIN_CHECK_PATCHES:
        return known
    made = _load_candidate(subject, way) if known is None else None
    if made is None:
        model, embedder = (known.model, known.embedder) if known and known.embedder else _build_candidate(subject, way)
        made = CandidateResult(embedder, _check_candidate(subject, way, embedder), model)
        if made.verdict.patches >= MIN_CHECK_PATCHES:
            verdicts.store_check(way, made.verdict, partial(_write, made))
            made = replace(made, model=None)  # it is not compared again, and what runs it has its own copy
    subject.prepared[way] = made
    return made


def _write(made: CandidateResult, folder: Path) -> None:
    if made.model is not None and made.verdict.agrees:
        converted.write_model(folder, made.model)


def _load_candidate(subject: RuntimeRequest, way: RuntimeKey) -> CandidateResult | None:
    """Return what an earlier process left; None where that is not whole."""
    verdict = verdicts.load_check(way)
    if verdict is None:
        return None
    if not verdict.agrees:
        return CandidateResult(None, verdict)
    if way.runtime == "torch":
        return CandidateResult(_torch_embedder(_fold_if_normed(subject.network.encoder), way, subject.device), verdict)
    model = converted.read_model(way.folder)
    return None if model is None else CandidateResult(_openvino_embedder(model, way), verdict)


def _build_candidate(subject: RuntimeRequest, way: RuntimeKey) -> tuple[Any, Embedder]:
    """Return model and embedder of a way; the model is None where torch runs."""
    if way.runtime == "torch":
        return None, _torch_embedder(subject.folded, way, subject.device)
    encoder = round_weights_to_bfloat16(subject.folded, biases=True) if way.precision == "bfloat16" else subject.folded
    model = converted.convert_encoder(encoder, subject.side)
    return model, _openvino_embedder(model, way)


def _openvino_embedder(model: Any, way: RuntimeKey) -> Embedder:
    """Return a model for as many threads as torch uses: one setting, made on purpose, holds for both."""
    return OpenVinoEmbedder(converted.compile_model(model, way.precision, torch.get_num_threads()))


def _torch_embedder(encoder: Any, way: RuntimeKey, device: torch.device) -> Embedder:
    plain: Embedder = encoder
    if way.precision == "float32":
        return plain
    small = encoder.spec.family in CONVOLUTIONAL  # others have no filters of few taps, and may be large
    return Bfloat16Embedder(round_weights_to_bfloat16(encoder) if small else encoder, device)


def _fold_if_normed(encoder: Any) -> Any:
    return (
        fold_batch_norm(encoder) if any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()) else encoder
    )


def _check_candidate(subject: RuntimeRequest, way: RuntimeKey, embedder: Embedder) -> AgreementCheck:
    """Return whether a way agrees with torch in float32, which with folded norms is compared where they are folded."""
    if (way.runtime, way.precision) == ("torch", "float32"):
        same = subject.folded is subject.network.encoder
        told = "the network as it is" if same else "batch norm is folded into the convolutions"
        return AgreementCheck(True, told, len(subject.sample))
    return compare_with_reference(subject, embedder)


def compare_with_reference(subject: RuntimeRequest, embedder: Embedder) -> AgreementCheck:
    """Return whether attention and probabilities of the sample are those of torch, within what is allowed."""
    (attention, shares), (own_attention, own_shares) = (
        _pool_sample(subject, features) for features in (subject.reference, subject.embedded(embedder))
    )
    count, rank = len(attention), spearman(attention, own_attention)
    difference = float(np.abs(shares - own_shares).max())
    if rank is None:  # too few patches, or all alike: then by their values
        rank = 1.0 if np.abs(attention - own_attention).max() <= MAX_PROBABILITY_DIFFERENCE else 0.0
    told = (
        f"against torch on {count} patches: Spearman of attention {rank:.5f}, probabilities differ by {difference:.1e}"
    )
    return AgreementCheck(bool(rank >= MIN_SPEARMAN and difference <= MAX_PROBABILITY_DIFFERENCE), told, count)


def _pool_sample(subject: RuntimeRequest, features: Features) -> tuple[Features, Features]:
    """Return (n,) attention and (C,) probabilities of the sample as a bag."""
    mil = subject.network.mil
    with torch.inference_mode():
        out = mil(torch.from_numpy(features).to(next(mil.parameters()).device))
    return to_numpy(out.attention), to_numpy(torch.softmax(out.logits / (subject.temperature or 1.0), dim=0))


class Bfloat16Embedder:
    """A torch encoder in bfloat16 where that is safe for a layer; embeddings come out in float32.

    Parameters
    ----------
    encoder
        On the device.
    device
        CUDA, or a CPU.
    """

    def __init__(self, encoder: Embedder, device: torch.device) -> None:
        self._encoder, self._device = encoder, device

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a batch."""
        with torch.autocast(self._device.type, torch.bfloat16):
            found = self._encoder(pixels, layers)
        return EncoderOutput(found.embedding.float(), found.maps)


def evenly_spaced_rows(total: int, side: int) -> Int64:
    """Return rows to compare on, evenly over the `total` patches of `side` pixels."""
    fewest, most = SAMPLE_SIZE_RANGE
    count = min(most, max(fewest, SAMPLE_PIXELS // side**2))
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
