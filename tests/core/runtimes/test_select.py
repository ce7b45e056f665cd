"""Selection of the runtime: OpenVINO agrees with torch or is refused, and every choice has a reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_lrmil.core.encoders import AlignedEncoder, EncoderSpec, build_encoder, resolve_encoder
from napari_lrmil.core.errors import ConfigError, EncoderError
from napari_lrmil.core.events import Finished
from napari_lrmil.core.features.embedding_cache import EmbeddingCache
from napari_lrmil.core.features.extraction import PatchSet, embed, extract_features
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.metrics.agreement import spearman
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork
from napari_lrmil.core.models.pooling import pool_instances
from napari_lrmil.core.phantom import LESION, PhantomSlide, paint
from napari_lrmil.core.results.writer import build_prediction_file
from napari_lrmil.core.runtimes import agreement_cache, openvino, openvino_conversion, select, torch_runtime
from napari_lrmil.core.runtimes.openvino import OpenVinoEmbedder
from napari_lrmil.core.runtimes.optimize import fold_batch_norm, round_weights_to_bfloat16
from napari_lrmil.core.runtimes.select import (
    MIN_CHECK_PATCHES,
    RuntimeChoice,
    RuntimeRequest,
    evenly_spaced_rows,
    prepare_runtime,
    require_runtime,
)
from napari_lrmil.core.user_folders import CACHE_VARIABLE
from support.fake_slides import FakeSlide, fake_slide, lively_bundle, one_sentence, resolution, speckled
from support.networks import untrained_encoder

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(not openvino.is_installed(), reason="the extra openvino is not installed")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder for this test."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(select, "MIN_SPEARMAN", 0.98)  # patches that overlap are near to ties
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return Bundle("demo")


@cache
def tissue() -> np.ndarray:
    """Return the pixels of a phantom at 5x: what attention says of patches without a sense is near to a tie."""
    pixels = paint(PhantomSlide("phantom", LESION, 5, (2560, 2048))).pixels
    return pixels.reshape(512, 4, 640, 4, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def patches(count: int, side: int = 128) -> np.ndarray:
    """Return (count, side, side, 3) patches of tissue, no two alike."""
    view = np.lib.stride_tricks.sliding_window_view(tissue(), (side, side, 3))[::16, ::16, 0]
    every = view.reshape(-1, side, side, 3)
    return every[np.linspace(0, len(every) - 1, count).astype(int)] if count else every[:0]


def runtime_request(bundle: Bundle, count: int = 64, **changes: Any) -> RuntimeRequest:
    network = changes.pop("network", bundle.student)
    request = RuntimeRequest(
        load=lambda: network,
        mil=network.mil.weights(),
        family=getattr(getattr(network.encoder, "spec", None), "family", "unknown"),
        device=CPU,
        identity=f"{bundle.sha256} student",
        side=bundle.card.lr_patch_px,
        temperature=None,
        patches=count,
        pixels=lambda: patches(count),
        prepared={},
    )
    return replace(request, **changes)


class Conversions:
    """Counts how often an encoder was openvino."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = openvino_conversion.convert_encoder

        def counted(*args: Any) -> Any:
            self.count += 1
            return original(*args)

        monkeypatch.setattr(openvino_conversion, "convert_encoder", counted)


# ---------------------------------------------------------------- OpenVINO against torch


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_a_trained_bundle_is_seen_alike(demo: Bundle, which: str) -> None:
    """The demo's own networks in float32, and how far bfloat16 is off them; what is used is checked on every slide."""
    network, pixels = getattr(demo, which), patches(96)
    spare = round_weights_to_bfloat16(fold_batch_norm(network.encoder), biases=True)
    models = [openvino_conversion.convert_encoder(e, 128) for e in (network.encoder, spare)]
    full, half = (
        OpenVinoEmbedder(openvino.compile_model(m, precision, 1)).embed(pixels)
        for m, precision in zip(models, ("float32", openvino.supported_precisions()[0]), strict=True)
    )
    wanted = embed(network.encoder, pixels, None, CPU)
    expected, pooled = (pool_instances(network.mil.weights(), e) for e in (wanted, full))
    rank = spearman(expected.attention, pooled.attention)
    assert rank is not None and rank >= 0.999 and np.ptp(expected.attention) > 1e-4
    shares = [torch.softmax(torch.from_numpy(p.logits), 0).numpy() for p in (expected, pooled)]
    assert np.abs(shares[0] - shares[1]).max() <= 1e-2
    assert np.linalg.norm(half - wanted) < 0.1 * np.linalg.norm(wanted - wanted.mean(axis=0))


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large", "convnext_atto"])
def test_every_convolutional_family_converts(name: str) -> None:
    """In float32 the embeddings are torch's but for rounding, whatever the size of the batch."""
    loaded = resolve_encoder(name)
    assert loaded is not None
    encoder = AlignedEncoder(loaded.encoder, 24).eval()
    embedder = OpenVinoEmbedder(openvino.compile_model(openvino_conversion.convert_encoder(encoder, 64), "float32", 1))
    pixels = patches(default_batch_size(64) + 3, 64)
    expected, embedding = (embed(e, pixels, None, CPU) for e in (encoder, embedder))
    assert embedding.shape == expected.shape == (default_batch_size(64) + 3, 24)
    np.testing.assert_allclose(embedding, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))


@needs_openvino
def test_a_patch_embeds_to_the_same_whatever_lies_beside_it(demo: Bundle) -> None:
    ready = openvino.compile_model(
        openvino_conversion.convert_encoder(demo.student.encoder, 128), openvino.supported_precisions()[0], 1
    )
    embedder, pixels = OpenVinoEmbedder(ready), patches(20)
    together, alone = embedder.embed(pixels), embedder.embed(pixels[17:18])
    assert np.array_equal(together[17:18], alone)


@needs_openvino
def test_layers_are_left_to_torch(demo: Bundle, tmp_path: Path) -> None:
    embedder = OpenVinoEmbedder(
        openvino.compile_model(openvino_conversion.convert_encoder(demo.student.encoder, 128), "float32", 1)
    )
    patch = PatchSet(np.zeros((1, 2), np.int64), (128, 128), 128)
    with fake_slide(tmp_path, FakeSlide(speckled(300, 300))) as slide:
        events = extract_features(slide, patch, embedder, device=CPU, layers=("head",))
        with pytest.raises(EncoderError, match="--runtime torch") as caught:
            list(events)
    assert one_sentence(caught.value)


# ---------------------------------------------------------------- the choice


def test_torch_is_taken_as_it_is_and_nothing_is_compared(demo: Bundle) -> None:
    def unread() -> np.ndarray:
        raise AssertionError("read")

    runtime = prepare_runtime("torch", runtime_request(demo, pixels=unread))
    assert runtime.embedder is demo.student.encoder
    assert runtime.choice == RuntimeChoice("torch", "float32", "asked for") and runtime.choice.cache_tag == "float32"


@needs_openvino
def test_auto_takes_openvino_where_it_agrees(demo: Bundle) -> None:
    runtime = prepare_runtime("auto", runtime_request(demo))
    assert (runtime.choice.name, runtime.choice.precision) == ("openvino", openvino.supported_precisions()[0])
    assert "on 64 patches: Spearman of attention" in runtime.choice.reason
    assert runtime.choice.cache_tag == f"{runtime.choice.precision} openvino", (
        "a cache must keep them apart from torch's"
    )


class Wrong:
    """OpenVINO embedder whose results are wrong."""

    def __init__(self, ready: Any) -> None:
        self._right = OpenVinoEmbedder(ready)

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        features = self._right.embed(pixels)
        noise = np.random.default_rng(0).normal(0, 3 * features.std(), features.shape)
        return features + noise.astype(np.float32)


@pytest.mark.slow
@needs_openvino
def test_what_does_not_agree_is_refused_and_the_reason_told(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    monkeypatch.setattr(select, "OpenVinoEmbedder", Wrong)
    request = runtime_request(demo)
    runtime = prepare_runtime("openvino", request)
    assert runtime.embedder is demo.student.encoder and runtime.choice.name == "torch"
    for precision in openvino.supported_precisions():
        assert f"OpenVINO in {precision} was refused: against torch on 64 patches" in runtime.choice.reason
    monkeypatch.undo()
    monkeypatch.setenv(CACHE_VARIABLE, str(cache_folder))
    later = prepare_runtime("openvino", runtime_request(demo, pixels=lambda: patches(0)))
    assert later.choice == runtime.choice, "a later process says the same, and compares nothing"


@pytest.mark.slow
@needs_openvino
def test_float32_is_tried_where_bfloat16_does_not_agree(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "supported_precisions", lambda: ("bfloat16", "float32"))
    original, precisions = openvino.compile_model, []

    def compiled(model: Any, precision: str, threads: int) -> Any:
        precisions.append(precision)
        return original(model, "float32", threads)

    monkeypatch.setattr(openvino, "compile_model", compiled)
    monkeypatch.setattr(
        select, "OpenVinoEmbedder", lambda ready: (Wrong if len(precisions) == 1 else OpenVinoEmbedder)(ready)
    )
    runtime = prepare_runtime("auto", runtime_request(demo))
    assert precisions == ["bfloat16", "float32"]
    assert (runtime.choice.name, runtime.choice.precision) == ("openvino", "float32")
    assert runtime.choice.reason.startswith("OpenVINO in bfloat16 was refused")


@pytest.mark.parametrize("half", [True, False])
def test_without_openvino_auto_is_torch_made_lean_and_says_so(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    monkeypatch.setattr(torch_runtime, "has_native_bfloat16", lambda device: half)
    request = runtime_request(demo)
    runtime = prepare_runtime("auto", request)
    precision = "bfloat16" if half else "float32"
    assert (runtime.choice.name, runtime.choice.precision) == ("torch", precision)
    assert runtime.choice.reason.startswith("OpenVINO is not installed; ")
    expected, embeddings = request.embed_sample(demo.student.encoder), request.embed_sample(runtime.embedder)
    assert np.abs(embeddings - expected).max() < (0.1 if half else 1e-3) * np.abs(expected).max()
    norms = [m for m in runtime.embedder.modules() if isinstance(m, torch.nn.BatchNorm2d)] if not half else []  # type: ignore[attr-defined]  # a module
    assert not norms, "they are folded"


def test_what_cannot_be_asked_for_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no runtime 'abacus'; available: auto, torch, openvino") as unknown:
        require_runtime("abacus", CPU)
    monkeypatch.setattr(openvino, "is_installed", lambda: True)
    with pytest.raises(ConfigError, match="runs on the CPU, not on meta") as elsewhere:
        require_runtime("openvino", torch.device("meta"))
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r'not installed; pip install "napari-lrmil\[openvino\]"') as missing:
        require_runtime("openvino", CPU)
    assert all(one_sentence(caught.value) for caught in (unknown, elsewhere, missing))


@needs_openvino
def test_auto_leaves_tokens_and_strangers_to_torch(demo: Bundle) -> None:
    class Stranger(torch.nn.Module):
        pass

    network = StudentNetwork(Stranger(), GatedAttentionMIL(4, 2))  # type: ignore[arg-type]  # a stand-in
    runtime = prepare_runtime("auto", runtime_request(demo, network=network))
    assert runtime.choice == RuntimeChoice("torch", "float32", "an encoder of the family unknown is left to torch")


@needs_openvino
def test_what_openvino_cannot_convert_stays_with_torch(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("this network cannot be traced")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    runtime = prepare_runtime("openvino", runtime_request(demo))
    assert runtime.embedder is demo.student.encoder and runtime.choice.name == "torch"
    assert "OpenVINO cannot run this encoder" in runtime.choice.reason


def test_what_is_another_network_once_folded_stays_as_it_is(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that follow each other need not be used so."""
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    monkeypatch.setattr(torch_runtime, "fold_batch_norm", lambda encoder: untrained_encoder(9))
    network = StudentNetwork(untrained_encoder(), GatedAttentionMIL(1280 // 4, 2))
    runtime = prepare_runtime("auto", runtime_request(demo, network=network))
    assert runtime.embedder is network.encoder and "cannot be folded" in runtime.choice.reason


# ---------------------------------------------------------------- the disk cache


@needs_openvino
def test_a_later_process_neither_converts_nor_compares(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = Conversions(monkeypatch)
    first, pixels = prepare_runtime("auto", runtime_request(demo)), patches(3)
    later = prepare_runtime("auto", runtime_request(demo, pixels=lambda: patches(0)))
    assert conversions.count == 1 and later.choice == first.choice
    assert np.array_equal(*(embed(r.embedder, pixels, None, CPU) for r in (first, later)))


@needs_openvino
def test_workers_that_start_together_convert_once(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions, begun = Conversions(monkeypatch), threading.Barrier(2)

    def prepare() -> str:
        begun.wait(240)
        return prepare_runtime("auto", runtime_request(demo)).choice.name

    with ThreadPoolExecutor(2) as workers:
        assert [future.result(240) for future in [workers.submit(prepare) for _ in range(2)]] == ["openvino"] * 2
    assert conversions.count == 1


@needs_openvino
def test_few_patches_are_compared_again_with_the_next_slide(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    """Two patches agree by luck; the conversion is kept in this process all the same."""
    conversions, request = Conversions(monkeypatch), runtime_request(demo, 2)
    assert prepare_runtime("openvino", request).choice.name == "openvino"
    assert not list(cache_folder.rglob("*.json"))
    runtime = prepare_runtime(
        "auto", replace(request, patches=MIN_CHECK_PATCHES, pixels=lambda: patches(MIN_CHECK_PATCHES))
    )
    assert f"on {MIN_CHECK_PATCHES} patches" in runtime.choice.reason
    assert conversions.count == 1 and len(list(cache_folder.rglob("verdict.json"))) == 1


@needs_openvino
def test_few_patches_are_float32_whatever_was_compared_before(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    few = runtime_request(demo, MIN_CHECK_PATCHES - 1)
    runtime = prepare_runtime("auto", few)
    assert (runtime.choice.name, runtime.choice.precision) == ("openvino", "float32")
    assert runtime.choice.reason.startswith("31 patches are too few to check a faster number format; against torch")
    expected = embed(demo.student.encoder, few.sample, None, CPU)
    np.testing.assert_allclose(few.embed_sample(runtime.embedder), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    prepare_runtime("auto", runtime_request(demo, MIN_CHECK_PATCHES))
    assert prepare_runtime("auto", few).choice == runtime.choice  # which slide came first must not matter


@needs_openvino
def test_a_single_patch_settles_float32_for_later_processes(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = Conversions(monkeypatch)
    prepare_runtime("auto", runtime_request(demo, 1))
    request = runtime_request(demo, 1, pixels=lambda: patches(0))
    assert select.is_converted("auto", request) and not select.is_converted("torch", request)
    assert prepare_runtime("auto", request).choice.name == "openvino" and conversions.count == 1


@needs_openvino
def test_float32_that_is_wrong_is_refused_on_a_few_patches(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "OpenVinoEmbedder", Wrong)
    runtime = prepare_runtime("auto", runtime_request(demo, 3))
    assert runtime.embedder is demo.student.encoder and "OpenVINO in float32 was refused" in runtime.choice.reason


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("file", [agreement_cache.MODEL_FILE, agreement_cache.CHECK_FILE])
def test_a_broken_cache_is_made_again(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, file: str
) -> None:
    conversions = Conversions(monkeypatch)
    prepare_runtime("auto", runtime_request(demo))
    (path,) = cache_folder.rglob(file)
    path.write_bytes(path.read_bytes()[:100])
    assert prepare_runtime("auto", runtime_request(demo)).choice.name == "openvino"
    assert conversions.count == 2


@needs_openvino
def test_a_cache_that_cannot_be_written_is_done_without(demo: Bundle, cache_folder: Path) -> None:
    cache_folder.write_text("a file in the place of the folder")
    assert prepare_runtime("auto", runtime_request(demo)).choice.name == "openvino"


@needs_openvino
def test_the_oldest_conversions_go(demo: Bundle, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_cache, "MAX_ENTRIES", 2)
    for i in range(4):
        (cache_folder / "runtimes" / str(i)).mkdir(parents=True)
    prepare_runtime("auto", runtime_request(demo))
    left = [path for path in (cache_folder / "runtimes").iterdir() if path.is_dir()]
    assert len(left) == 2 and any((folder / agreement_cache.CHECK_FILE).exists() for folder in left)


def test_patches_to_compare_come_from_all_over_the_slide() -> None:
    assert evenly_spaced_rows(1643, 256)[[0, -1]].tolist() == [0, 1642]
    assert [len(evenly_spaced_rows(1643, side)) for side in (64, 128, 256, 512)] == [256, 256, 64, 64]
    assert evenly_spaced_rows(3, 256).tolist() == [0, 1, 2] and evenly_spaced_rows(1, 256).tolist() == [0]


# ---------------------------------------------------------------- a prediction


def run_to_end(events: Iterator[Any]) -> Prediction:
    *_, last = events
    assert isinstance(last, Finished)
    prediction: Prediction = last.result
    return prediction


@pytest.mark.slow
@needs_openvino
def test_a_prediction_says_what_ran_and_is_that_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Student and teacher alike; the cache keeps the two runtimes' embeddings apart."""
    monkeypatch.setattr(openvino, "supported_precisions", lambda: ("float32",))
    bundle, embeddings = lively_bundle(tmp_path / "b"), EmbeddingCache()
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 1300), properties=resolution(0.5))) as slide:
        plain = run_to_end(predict(slide, bundle, device=CPU, teacher=TeacherPatches.ALL, cache=embeddings))
        fast = run_to_end(
            predict(slide, bundle, device=CPU, teacher=TeacherPatches.ALL, cache=embeddings, runtime="openvino")
        )
    written, reference = build_prediction_file(fast).as_json(), build_prediction_file(plain).as_json()
    assert written["pixels_decoded"] == reference["pixels_decoded"], (
        "what was read to compare is no pixel of the method"
    )
    assert (reference["runtime"], reference["precision"]) == ("torch", "float32")
    assert written["runtime"] == written["teacher"]["runtime"] == "openvino", written["runtime_reason"]
    assert json.dumps(written["runtime_reason"]) and written["precision"] in ("bfloat16", "float32")
    assert fast.student.patches_encoded == plain.student.patches_encoded > 0, (
        "torch's cached embeddings were not taken for those of OpenVINO"
    )
    assert fast.student.probabilities == pytest.approx(plain.student.probabilities, abs=1e-2)
    rank = spearman(plain.student.attention, fast.student.attention)
    assert rank is not None and rank >= 0.999


@needs_openvino
def test_a_process_prepares_a_bundle_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cohort of a hundred slides compiles its encoder once; a copy for another process starts with none."""
    import pickle

    bundle, compiled = lively_bundle(tmp_path / "b"), []
    original = openvino.compile_model
    monkeypatch.setattr(openvino, "compile_model", lambda *args: compiled.append(args) or original(*args))
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 1300), properties=resolution(0.5))) as slide:
        first, second = (run_to_end(predict(slide, bundle, device=CPU, runtime="auto")) for _ in range(2))
    assert first.student.probabilities == second.student.probabilities
    assert len(compiled) == len(bundle.prepared) > 0
    assert pickle.loads(pickle.dumps(bundle)).prepared == {}


# ---------------------------------------------------------------- CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_cuda_bfloat16_agrees_or_is_refused(demo: Bundle) -> None:
    device = torch.device("cuda")
    network = Bundle("demo").student.to(device)
    runtime = prepare_runtime("auto", runtime_request(demo, network=network, device=device))
    assert runtime.choice.name == "torch"
    if runtime.choice.precision == "float32":
        assert "refused" in runtime.choice.reason or "does not compute" in runtime.choice.reason


def test_a_large_network_without_batch_norm_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a foundation model would not fit beside it."""
    spec = EncoderSpec("vit", {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}, "x", "tokens")
    network = StudentNetwork(build_encoder(spec).eval(), GatedAttentionMIL(48, 2))
    monkeypatch.setattr(torch_runtime, "has_native_bfloat16", lambda device: True)
    request = runtime_request(
        Bundle("demo"), 40, network=network, identity="tokens", side=64, pixels=lambda: patches(40, 64)
    )
    assert request.folded_encoder is network.encoder
    runtime = prepare_runtime("auto", request)
    assert (runtime.choice.name, runtime.choice.precision) == ("torch", "bfloat16"), runtime.choice.reason
    assert isinstance(runtime.embedder, torch_runtime.Bfloat16Embedder)
    assert runtime.embedder._encoder is network.encoder
