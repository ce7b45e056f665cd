"""Selection of the runtime of an encoder: torch in float32 is the reference, faster ones must agree with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.encoders.spec import CONVOLUTIONAL, FROZEN
from napari_lrmil.core.errors import ConfigError, EncoderError
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.features.devices import device_type
from napari_lrmil.core.features.extraction import ArrayEmbedder, embed
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.metrics.agreement import spearman
from napari_lrmil.core.models.bundle import Prepared
from napari_lrmil.core.models.pooling import AggregatorWeights, pool_instances
from napari_lrmil.core.runtimes import agreement_cache, openvino
from napari_lrmil.core.runtimes.agreement_cache import AgreementCheck, RuntimeKey
from napari_lrmil.core.runtimes.openvino import OpenVinoEmbedder
from napari_lrmil.core.threads import compute_threads

if TYPE_CHECKING:
    import torch

    from napari_lrmil.core.features.torch_encoding import Embedder
    from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork

RUNTIMES = ("auto", "torch", "openvino")
MIN_SPEARMAN = 0.999  # of attention, between a fast runtime and torch
MAX_PROBABILITY_DIFFERENCE = 1e-2  # of any class
SAMPLE_PIXELS = 2**22  # pixels of the compared patches; more patches give a more certain Spearman correlation
SAMPLE_SIZE_RANGE = (64, 256)  # minimum and maximum number of compared patches, whatever their size
MIN_CHECK_PATCHES = 32  # fewer say little about rounding: such a check of bfloat16 is neither stored nor made by "auto"
FOLDING_CHECK_PATCHES = 4  # enough to detect a network that folding has changed
FOLDING_TOLERANCE = 1e-3  # share of the largest embedding value; covers another order of additions
FLOAT32 = "float32"


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

    embedder: Embedder | ArrayEmbedder
    choice: RuntimeChoice


@dataclass(frozen=True)
class RuntimeRequest:
    """Network to run, and the patches on which runtimes are compared.

    Attributes
    ----------
    load
        Returns encoder and MIL in torch, on the device; called only if torch computes or a runtime is compared.
    mil
        Weights of the MIL.
    family
        Architecture of the encoder, see `EncoderSpec`.
    device
        Device of the network.
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

    load: Callable[[], StudentNetwork | TeacherNetwork]
    mil: AggregatorWeights
    family: str
    device: str | torch.device
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
    def encoder(self) -> Any:
        """Encoder in torch, on the device."""
        return self.load().encoder

    @cached_property
    def folded_encoder(self) -> Any:
        """Encoder with folded batch norm; the encoder itself if it has no batch norm, because a copy can be large.

        Raises
        ------
        EncoderError
            If folding changes the embeddings: the network does not run its modules in the order of their definition.
        """
        from napari_lrmil.core.runtimes.torch_runtime import fold_if_normed

        folded = fold_if_normed(self.encoder)
        if folded is self.encoder:
            return folded
        expected, embeddings = (self.embed_sample(e, FOLDING_CHECK_PATCHES) for e in (self.encoder, folded))
        if not _is_close(expected, embeddings):
            raise EncoderError("this encoder cannot be folded")
        return folded

    @cached_property
    def reference(self) -> Features:
        """(n, D) embeddings of the sample by torch in float32."""
        return self.embed_sample(self.folded_encoder)

    def embed_sample(self, embedder: Embedder | ArrayEmbedder, limit: int | None = None) -> Features:
        """Return the (n, D) embeddings of the sample, or of its first `limit` patches."""
        pixels, size = self.sample[:limit], default_batch_size(self.side)
        parts = (pixels[i : i + size] for i in range(0, len(pixels), size))
        return np.concatenate([embed(embedder, part, self.side, self.device) for part in parts])


def _is_close(expected: Features, embeddings: Features) -> bool:
    return np.allclose(expected, embeddings, rtol=0, atol=FOLDING_TOLERANCE * float(np.abs(expected).max()))


def require_runtime(name: str, device: str | torch.device | None) -> None:
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
            '--runtime openvino: OpenVINO is not installed; pip install "napari-lrmil[openvino]", or take torch or auto'
        )
    if device_type(device) != "cpu":
        raise ConfigError(f"--runtime openvino runs on the CPU, not on {device}; add --device cpu, or take auto")


def prepare_runtime(name: str, request: RuntimeRequest) -> Runtime:
    """Return the fastest runtime that agrees with torch in float32, or torch in float32 if none does.

    Parameters
    ----------
    name
        ``torch``, ``openvino`` or ``auto``. On a CPU, ``auto`` tries OpenVINO for convolutional encoders if it is
        installed, then torch with folded batch norm. On CUDA it tries torch. Each is tried in bfloat16 first if the
        device computes in it natively. A few patches are encoded in float32, because they say little about rounding.
    request
        Network to run, and its device.

    Raises
    ------
    ConfigError
        See `require_runtime`.
    """
    require_runtime(name, request.device)
    if name == REFERENCE.name:
        return Runtime(request.encoder, REFERENCE)
    notes, keys = candidate_runtimes(name, request)
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
    return Runtime(request.encoder, RuntimeChoice(reason="; ".join(notes)))


def is_converted(name: str, request: RuntimeRequest) -> bool:
    """Return whether the cache has the network in a form that runs without torch, in any number format."""
    if name == REFERENCE.name:
        return False
    # Another number format can be needed later, but the network was built once and so fits its card.
    keys = takewhile(lambda key: key.runtime == "openvino", candidate_runtimes(name, request)[1])
    return any(check is not None and check.agrees for check in map(agreement_cache.load_check, keys))


def _title(key: RuntimeKey) -> str:
    return f"{'OpenVINO' if key.runtime == 'openvino' else key.runtime} in {key.precision}"


def candidate_runtimes(name: str, request: RuntimeRequest) -> tuple[list[str], Iterator[RuntimeKey]]:
    """Return notes on runtimes that are not tried, and the keys of those that are, the fastest first."""
    kind, family = device_type(request.device), request.family
    if kind not in ("cpu", "cuda"):
        return [f"on {request.device} torch in float32 is the only runtime"], iter(())
    if family in (FROZEN, "unknown") and kind == "cpu":
        return [f"an encoder of the family {family} is left to torch"], iter(())
    # A stored check of another slide is ignored here: results must not depend on the order of the slides.
    has_few = name == "auto" and request.patches < MIN_CHECK_PATCHES
    notes = [f"{request.patches} patches are too few to check a faster number format"] if has_few else []
    has_openvino = kind == "cpu" and openvino.is_installed()
    if kind == "cpu" and not has_openvino:
        notes.append("OpenVINO is not installed")
    use_openvino = has_openvino and (name == "openvino" or family in CONVOLUTIONAL)
    return notes, _candidate_keys(request, use_openvino, name == "auto" and not has_few, has_few)


def _candidate_keys(
    request: RuntimeRequest, use_openvino: bool, use_torch: bool, has_few: bool
) -> Iterator[RuntimeKey]:
    """Yield keys; torch is imported only if the caller goes on to them."""
    base = partial(RuntimeKey, request.identity, request.side)
    if use_openvino:
        runtime, processor = openvino.version(), openvino.describe_cpu()
        for precision in (FLOAT32,) if has_few else openvino.supported_precisions():
            yield base("openvino", runtime, precision, processor)
    if use_torch:
        from napari_lrmil.core.runtimes import torch_runtime

        processor = torch_runtime.describe_processor(request.device)
        for precision in ("bfloat16", FLOAT32) if torch_runtime.has_native_bfloat16(request.device) else (FLOAT32,):
            yield base("torch", agreement_cache.torch_version(), precision, processor)


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
        Compiled OpenVINO model, until the check is stored.
    """

    embedder: Embedder | ArrayEmbedder | None
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
    if earlier is not None and _is_settled(key, earlier.check):
        return earlier
    candidate = _load_candidate(request, key) if earlier is None else None
    if candidate is None:
        # Other workers wait for the one that converts, and load its network then.
        with agreement_cache.preparation_lock(key):
            candidate = _load_candidate(request, key) if earlier is None else None
            candidate = candidate or _prepare_candidate(request, key, earlier)
    request.prepared[key] = candidate
    return candidate


def _prepare_candidate(request: RuntimeRequest, key: RuntimeKey, earlier: CandidateResult | None) -> CandidateResult:
    """Return a candidate that is converted and checked now, and stored if its check holds for other slides."""
    # A check on too few patches is repeated with this slide, but the converted network is reused.
    if earlier is not None and earlier.embedder is not None:
        model, embedder = earlier.model, earlier.embedder
    else:
        model, embedder = _build_candidate(request, key)
    candidate = CandidateResult(embedder, _check_candidate(request, key, embedder), model)
    if _is_settled(key, candidate.check):
        agreement_cache.store_check(key, candidate.check, partial(_write_model, candidate))
        candidate = replace(candidate, model=None)
    return candidate


def _is_settled(key: RuntimeKey, check: AgreementCheck) -> bool:
    """Return whether a check holds for other slides too: that of rounding to bfloat16 needs many patches."""
    return key.precision == FLOAT32 or check.patches >= MIN_CHECK_PATCHES


def _write_model(candidate: CandidateResult, folder: Path) -> None:
    if candidate.model is not None and candidate.check.agrees:
        openvino.write_compiled(folder, candidate.model)


def _load_candidate(request: RuntimeRequest, key: RuntimeKey) -> CandidateResult | None:
    """Return the candidate that an earlier process stored, or None if the cache entry is missing or incomplete."""
    check = agreement_cache.load_check(key)
    if check is None:
        return None
    if not check.agrees:
        return CandidateResult(None, check)
    if key.runtime == "torch":
        from napari_lrmil.core.runtimes.torch_runtime import fold_if_normed, torch_embedder

        return CandidateResult(torch_embedder(fold_if_normed(request.encoder), key.precision, request.device), check)
    model = openvino.read_compiled(key.folder, key.precision, compute_threads())
    return None if model is None else CandidateResult(OpenVinoEmbedder(model), check)


def _build_candidate(request: RuntimeRequest, key: RuntimeKey) -> tuple[Any, Embedder | ArrayEmbedder]:
    """Return model and embedder of a candidate; the model is None for torch."""
    encoder = request.folded_encoder
    if key.runtime == "torch":
        from napari_lrmil.core.runtimes.torch_runtime import torch_embedder

        return None, torch_embedder(encoder, key.precision, request.device)
    from napari_lrmil.core.runtimes.openvino_conversion import convert_encoder
    from napari_lrmil.core.runtimes.optimize import round_weights_to_bfloat16

    if key.precision == "bfloat16":
        encoder = round_weights_to_bfloat16(encoder, biases=True)
    # As many threads as torch would use, so that one setting controls both.
    model = openvino.compile_model(convert_encoder(encoder, request.side), key.precision, compute_threads())
    return model, OpenVinoEmbedder(model)


def _check_candidate(request: RuntimeRequest, key: RuntimeKey, embedder: Embedder | ArrayEmbedder) -> AgreementCheck:
    """Return whether a candidate agrees with torch; `folded_encoder` has already checked torch in float32 itself."""
    if (key.runtime, key.precision) == ("torch", FLOAT32):
        is_unchanged = request.folded_encoder is request.encoder
        reason = "the network as it is" if is_unchanged else "batch norm is folded into the convolutions"
        return AgreementCheck(True, reason, len(request.sample))
    if key.precision == FLOAT32:
        return compare_embeddings(request, embedder)
    return compare_with_reference(request, embedder)


def compare_embeddings(request: RuntimeRequest, embedder: Embedder | ArrayEmbedder) -> AgreementCheck:
    """Return whether the embeddings of the sample equal those of torch, up to another order of additions."""
    expected, embeddings = request.reference, request.embed_sample(embedder)
    difference = float(np.abs(expected - embeddings).max()) / max(float(np.abs(expected).max()), 1e-30)
    reason = f"against torch on {len(expected)} patches: embeddings differ by {difference:.1e} of the largest"
    return AgreementCheck(_is_close(expected, embeddings), reason, len(expected))


def compare_with_reference(request: RuntimeRequest, embedder: Embedder | ArrayEmbedder) -> AgreementCheck:
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


def _pool_sample(request: RuntimeRequest, features: Features) -> tuple[Features, NDArray[np.float64]]:
    """Return (n,) attention and (C,) probabilities of the sample as one bag."""
    pooled = pool_instances(request.mil, features)
    logits = pooled.logits.astype(np.float64) / (request.temperature or 1.0)
    shares = np.exp(logits - logits.max())
    return pooled.attention, shares / shares.sum()


def evenly_spaced_rows(total: int, side: int) -> Int64:
    """Return rows to compare on, spread evenly over `total` patches of `side` pixels."""
    fewest, most = SAMPLE_SIZE_RANGE
    count = min(most, max(fewest, SAMPLE_PIXELS // side**2))
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
