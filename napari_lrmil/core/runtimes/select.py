"""Selection of the runtime of an encoder: torch in float32 is the reference, faster ones must agree with it."""

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
from napari_lrmil.core.runtimes import agreement_cache, openvino
from napari_lrmil.core.runtimes.agreement_cache import AgreementCheck, RuntimeKey
from napari_lrmil.core.runtimes.openvino import OpenVinoEmbedder
from napari_lrmil.core.runtimes.optimize import fold_batch_norm, round_weights_to_bfloat16

RUNTIMES = ("auto", "torch", "openvino")
MIN_SPEARMAN = 0.999  # of attention, between a fast runtime and torch
MAX_PROBABILITY_DIFFERENCE = 1e-2  # of any class
SAMPLE_PIXELS = 2**22  # pixels of the compared patches; more patches give a more certain Spearman correlation
SAMPLE_SIZE_RANGE = (64, 256)  # minimum and maximum number of compared patches, whatever their size
MIN_CHECK_PATCHES = 32  # fewer patches tell little: such a check is not stored, and "auto" does not make it
FOLDING_CHECK_PATCHES = 4  # enough to detect a network that folding has changed
FOLDING_TOLERANCE = 1e-3  # share of the largest embedding value; covers another order of additions


@dataclass(frozen=True)
class RuntimeChoice:
    """Runtime that encoded a slide, as ``prediction.json`` records it.

    Attributes
    ----------
    name
        ``torch`` or ``openvino``.
    precision
        Number format of the computation: ``float32`` or ``bfloat16``.
    reason
        Reason for the choice, as text.
    """

    name: str = "torch"
    precision: str = "float32"
    reason: str = "asked for"

    @property
    def cache_tag(self) -> str:
        """Name that keeps this runtime's embeddings apart from others in a cache; torch adds nothing to its format."""
        return self.precision if self.name == "torch" else f"{self.precision} {self.name}"


REFERENCE = RuntimeChoice()


@dataclass(frozen=True)
class Runtime:
    """Encoder that is ready to be called, and the choice that led to it."""

    embedder: Embedder
    choice: RuntimeChoice


@dataclass(frozen=True)
class RuntimeRequest:
    """Network to run, and the patches on which runtimes are compared.

    Attributes
    ----------
    network
        Encoder and MIL, on the device.
    identity
        Hash of the model, and the name of the network in it.
    side
        Side of a patch as the encoder receives it, in pixels.
    temperature
        Divisor of the logits, if probabilities are calibrated.
    patches
        Number of patches to encode.
    pixels
        Function that returns (n, h, w, 3) patches of the slide; called only if a comparison is necessary.
    prepared
        Runtimes that this process has prepared already.
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
        """Device of the network."""
        return next(self.network.mil.parameters()).device

    @cached_property
    def folded_encoder(self) -> Any:
        """Encoder with folded batch norm; the encoder itself if it has no batch norm, because a copy can be large.

        Raises
        ------
        EncoderError
            If folding changes the embeddings: the network does not run its modules in the order of their definition.
        """
        encoder = self.network.encoder
        folded = _fold_if_normed(encoder)
        if folded is encoder:
            return folded
        expected, embeddings = (self.embed_sample(e, FOLDING_CHECK_PATCHES) for e in (encoder, folded))
        if not np.allclose(expected, embeddings, rtol=0, atol=FOLDING_TOLERANCE * float(np.abs(expected).max())):
            raise EncoderError("this encoder cannot be folded")
        return folded

    @cached_property
    def reference(self) -> Features:
        """(n, D) embeddings of the sample by torch in float32."""
        return self.embed_sample(self.folded_encoder)

    def embed_sample(self, embedder: Embedder, limit: int | None = None) -> Features:
        """Return the (n, D) embeddings of the sample, or of its first `limit` patches."""
        pixels, size = self.sample[:limit], default_batch_size(self.side)
        parts = (pixels[i : i + size] for i in range(0, len(pixels), size))
        return np.concatenate([to_numpy(encode(embedder, part, self.side, self.device).embedding) for part in parts])


def require_runtime(name: str, device: torch.device | None) -> None:
    """Check that a runtime can be used, before any slide is opened.

    Parameters
    ----------
    name
        One of `RUNTIMES`.
    device
        Device that will run it. None means another machine, about which nothing can be checked here.

    Raises
    ------
    ConfigError
        If the name is unknown, the runtime is not installed, or it does not run on the device.
    """
    if name not in RUNTIMES:
        raise ConfigError(f"no runtime '{name}'; available: {', '.join(RUNTIMES)}")
    if name != "openvino" or device is None:
        return
    if not openvino.is_installed():
        raise ConfigError(
            "--runtime openvino: OpenVINO is not installed; pip install 'napari-lrmil[openvino]', or take torch or auto"
        )
    if device.type != "cpu":
        raise ConfigError(f"--runtime openvino runs on the CPU, not on {device}; add --device cpu, or take auto")


def prepare_runtime(name: str, request: RuntimeRequest, device: torch.device) -> Runtime:
    """Return the fastest runtime that agrees with torch in float32, or torch in float32 if none does.

    Parameters
    ----------
    name
        ``torch``, ``openvino`` or ``auto``. On a CPU, ``auto`` tries OpenVINO for convolutional encoders if it is
        installed, then torch with folded batch norm. On CUDA it tries torch. Each is tried in bfloat16 first if the
        device computes in it natively.
    request
        Network to run.
    device
        Device of the network.

    Raises
    ------
    ConfigError
        See `require_runtime`.
    """
    require_runtime(name, device)
    encoder = request.network.encoder
    if name == REFERENCE.name:
        return Runtime(encoder, REFERENCE)
    if name == "auto" and request.patches < MIN_CHECK_PATCHES:
        # A stored check of another slide is ignored here: results must not depend on the order of the slides.
        reason = f"{request.patches} patches are too few to compare by, and soon done"
        return Runtime(encoder, RuntimeChoice(reason=reason))
    notes, keys = candidate_runtimes(name, request, device)
    for key in keys:
        try:
            candidate = evaluate_candidate(request, key)
        except EncoderError as error:
            notes.append(f"{_title(key)}: {error}")
            continue
        check = candidate.check
        if check.agrees and candidate.embedder is not None:
            reason = "; ".join([*notes, check.reason])
            return Runtime(candidate.embedder, RuntimeChoice(key.runtime, key.precision, reason))
        notes.append(f"{_title(key)} was refused: {check.reason}")
    return Runtime(encoder, RuntimeChoice(reason="; ".join(notes)))


def _title(key: RuntimeKey) -> str:
    return f"{'OpenVINO' if key.runtime == 'openvino' else key.runtime} in {key.precision}"


def candidate_runtimes(name: str, request: RuntimeRequest, device: torch.device) -> tuple[list[str], list[RuntimeKey]]:
    """Return notes on runtimes that are not tried, and the keys of those that are, the fastest first."""
    family = getattr(getattr(request.network.encoder, "spec", None), "family", "unknown")
    if device.type not in ("cpu", "cuda"):
        return [f"on {device} torch in float32 is the only runtime"], []
    if family in (FROZEN, "unknown") and device.type == "cpu":
        return [f"an encoder of the family {family} is left to torch"], []
    notes: list[str] = []
    candidates: list[tuple[str, str, str]] = []  # runtime, version, precision
    if device.type == "cpu" and not openvino.is_installed():
        notes.append("OpenVINO is not installed")
    elif device.type == "cpu" and (name == "openvino" or family in CONVOLUTIONAL):
        candidates += [("openvino", openvino.version(), precision) for precision in openvino.supported_precisions()]
    if name == "auto":
        precisions = ("bfloat16", "float32") if agreement_cache.has_native_bfloat16(device) else ("float32",)
        candidates += [("torch", torch.__version__, precision) for precision in precisions]
    processor = agreement_cache.describe_processor(device)
    return notes, [RuntimeKey(request.identity, request.side, *candidate, processor) for candidate in candidates]


@dataclass(frozen=True)
class CandidateResult:
    """Candidate runtime, prepared and checked in this process.

    Attributes
    ----------
    embedder
        Callable that embeds patches; None if an earlier process refused the candidate.
    check
        Result of the comparison with torch.
    model
        Converted OpenVINO model, until the check is stored.
    """

    embedder: Embedder | None
    check: AgreementCheck
    model: Any = None


def evaluate_candidate(request: RuntimeRequest, key: RuntimeKey) -> CandidateResult:
    """Return a checked candidate, from this process, from the disk cache, or from a comparison made now.

    Raises
    ------
    EncoderError
        If this runtime cannot run the encoder.
    """
    earlier: CandidateResult | None = request.prepared.get(key)
    if earlier is not None and earlier.check.patches >= MIN_CHECK_PATCHES:
        return earlier
    candidate = _load_candidate(request, key) if earlier is None else None
    if candidate is None:
        # A check on too few patches is repeated with this slide, but the converted network is reused.
        if earlier is not None and earlier.embedder is not None:
            model, embedder = earlier.model, earlier.embedder
        else:
            model, embedder = _build_candidate(request, key)
        candidate = CandidateResult(embedder, _check_candidate(request, key, embedder), model)
        if candidate.check.patches >= MIN_CHECK_PATCHES:
            agreement_cache.store_check(key, candidate.check, partial(_write_model, candidate))
            candidate = replace(candidate, model=None)  # frees memory: the compiled network has a copy of its own
    request.prepared[key] = candidate
    return candidate


def _write_model(candidate: CandidateResult, folder: Path) -> None:
    if candidate.model is not None and candidate.check.agrees:
        openvino.write_model(folder, candidate.model)


def _load_candidate(request: RuntimeRequest, key: RuntimeKey) -> CandidateResult | None:
    """Return the candidate that an earlier process stored, or None if the cache entry is missing or incomplete."""
    check = agreement_cache.load_check(key)
    if check is None:
        return None
    if not check.agrees:
        return CandidateResult(None, check)
    if key.runtime == "torch":
        embedder = _torch_embedder(_fold_if_normed(request.network.encoder), key, request.device)
        return CandidateResult(embedder, check)
    model = openvino.read_model(key.folder)
    return None if model is None else CandidateResult(_openvino_embedder(model, key), check)


def _build_candidate(request: RuntimeRequest, key: RuntimeKey) -> tuple[Any, Embedder]:
    """Return model and embedder of a candidate; the model is None for torch."""
    encoder = request.folded_encoder
    if key.runtime == "torch":
        return None, _torch_embedder(encoder, key, request.device)
    if key.precision == "bfloat16":
        encoder = round_weights_to_bfloat16(encoder, biases=True)
    model = openvino.convert_encoder(encoder, request.side)
    return model, _openvino_embedder(model, key)


def _openvino_embedder(model: Any, key: RuntimeKey) -> Embedder:
    """Return a compiled model that uses as many threads as torch, so that one setting controls both."""
    return OpenVinoEmbedder(openvino.compile_model(model, key.precision, torch.get_num_threads()))


def _torch_embedder(encoder: Any, key: RuntimeKey, device: torch.device) -> Embedder:
    embedder: Embedder = encoder
    if key.precision == "float32":
        return embedder
    # Compensated rounding helps spatial filters only. Token networks have none, and a copy of one can be very large.
    is_convolutional = encoder.spec.family in CONVOLUTIONAL
    return Bfloat16Embedder(round_weights_to_bfloat16(encoder) if is_convolutional else encoder, device)


def _fold_if_normed(encoder: Any) -> Any:
    """Return the encoder with folded batch norm, or the encoder itself if it has no batch norm."""
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    return fold_batch_norm(encoder) if has_batch_norm else encoder


def _check_candidate(request: RuntimeRequest, key: RuntimeKey, embedder: Embedder) -> AgreementCheck:
    """Return whether a candidate agrees with torch; `folded_encoder` has already checked torch in float32 itself."""
    if (key.runtime, key.precision) == ("torch", "float32"):
        is_unchanged = request.folded_encoder is request.network.encoder
        reason = "the network as it is" if is_unchanged else "batch norm is folded into the convolutions"
        return AgreementCheck(True, reason, len(request.sample))
    return compare_with_reference(request, embedder)


def compare_with_reference(request: RuntimeRequest, embedder: Embedder) -> AgreementCheck:
    """Return whether attention and probabilities of the sample equal those of torch, within the tolerances."""
    expected_attention, expected_probabilities = _pool_sample(request, request.reference)
    attention, probabilities = _pool_sample(request, request.embed_sample(embedder))
    count, rank = len(attention), spearman(expected_attention, attention)
    difference = float(np.abs(expected_probabilities - probabilities).max())
    if rank is None:  # ranks are undefined for one patch or equal values: compare the values instead
        is_close = np.abs(expected_attention - attention).max() <= MAX_PROBABILITY_DIFFERENCE
        rank = 1.0 if is_close else 0.0
    agrees = bool(rank >= MIN_SPEARMAN and difference <= MAX_PROBABILITY_DIFFERENCE)
    figures = f"Spearman of attention {rank:.5f}, probabilities differ by {difference:.1e}"
    return AgreementCheck(agrees, f"against torch on {count} patches: {figures}", count)


def _pool_sample(request: RuntimeRequest, features: Features) -> tuple[Features, Features]:
    """Return (n,) attention and (C,) probabilities of the sample as one bag."""
    mil = request.network.mil
    with torch.inference_mode():
        out = mil(torch.from_numpy(features).to(next(mil.parameters()).device))
    return to_numpy(out.attention), to_numpy(torch.softmax(out.logits / (request.temperature or 1.0), dim=0))


class Bfloat16Embedder:
    """Torch encoder under bfloat16 autocast, which keeps sensitive layers in float32; embeddings are float32.

    Parameters
    ----------
    encoder
        Encoder on the device.
    device
        CUDA device or CPU.
    """

    def __init__(self, encoder: Embedder, device: torch.device) -> None:
        self._encoder, self._device = encoder, device

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a (B, 3, h, w) uint8 batch."""
        with torch.autocast(self._device.type, torch.bfloat16):
            output = self._encoder(pixels, layers)
        return EncoderOutput(output.embedding.float(), output.maps)


def evenly_spaced_rows(total: int, side: int) -> Int64:
    """Return rows to compare on, spread evenly over `total` patches of `side` pixels."""
    fewest, most = SAMPLE_SIZE_RANGE
    count = min(most, max(fewest, SAMPLE_PIXELS // side**2))
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
