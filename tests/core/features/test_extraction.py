"""Embeddings: every patch once, in order, read where it lies; events, cancelling, no gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_lrmil.core.encoders import EncoderOutput
from napari_lrmil.core.errors import LrmilError, SlideError
from napari_lrmil.core.events import Event, Notice, Progress
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.features.extraction import Embeddings, PatchSet, extract_features
from napari_lrmil.core.features.prefetch import AHEAD, BATCH
from napari_lrmil.core.features.torch_encoding import encode, is_out_of_memory, pad_batch, resize_patches
from support.fake_slides import FakeSlide, fake_slide, lively, one_sentence, speckled
from support.networks import untrained_encoder

CPU = torch.device("cpu")


class MeanColour:
    """Stands in for an encoder: the embedding is the mean colour, the map `half` the colour of left and right half."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.dtypes: set[torch.dtype] = set()
        self.gradients = False

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        self.batches.append(tuple(pixels.shape))
        self.dtypes.add(pixels.dtype)
        self.gradients |= torch.is_grad_enabled()
        x = pixels.float()
        middle = x.shape[-1] // 2
        halves = torch.stack([x[..., :middle].mean(dim=(2, 3)), x[..., middle:].mean(dim=(2, 3))], dim=2)[:, :, None]
        return EncoderOutput(x.mean(dim=(2, 3)), dict.fromkeys(layers, halves))


def drain(events: object) -> tuple[list[Event], Embeddings]:
    seen: list[Event] = []
    while True:
        try:
            seen.append(next(events))  # type: ignore[call-overload]  # a generator
        except StopIteration as stop:
            return seen, stop.value


def corners(count: int) -> np.ndarray:
    index = np.arange(count)
    return np.stack([(index % 10) * 80, (index // 10) * 48], axis=1).astype(np.int64)


def test_every_patch_is_embedded_once_in_order_from_where_it_lies(tmp_path: Path) -> None:
    count, base, encoder = 2 * BATCH + 5, speckled(900, 420), MeanColour()
    patches = PatchSet(corners(count), (80, 48), 16)
    with fake_slide(tmp_path, FakeSlide(base)) as slide:
        events, result = drain(extract_features(slide, patches, encoder, device=CPU, layers=("half",), stage="here"))
    expected = [base[y : y + 48, x : x + 80].mean(axis=(0, 1)) for x, y in patches.corners]
    assert result.features.shape == (count, 3) and result.features.dtype == np.float32
    np.testing.assert_allclose(result.features, expected, atol=0.6)
    np.testing.assert_allclose(result.layers["half"], expected, atol=0.6)
    assert [(e.stage, e.done, e.total) for e in events if isinstance(e, Progress)] == [
        ("here", BATCH, count), ("here", 2 * BATCH, count), ("here", count, count)
    ]  # fmt: skip
    assert encoder.batches == [(BATCH, 3, 16, 16), (BATCH, 3, 16, 16), (5, 3, 16, 16)]


def test_encoders_get_bytes_and_no_gradients(tmp_path: Path) -> None:
    encoder = MeanColour()
    with fake_slide(tmp_path, FakeSlide(speckled(200, 100))) as slide:
        drain(extract_features(slide, PatchSet(corners(2), (80, 48), 16), encoder, device=CPU))
    assert encoder.dtypes == {torch.uint8} and not encoder.gradients


def test_batches_do_not_change_what_a_patch_embeds_to(tmp_path: Path) -> None:
    """Evaluation mode: a patch alone and a patch among others are the same; batch norm in train mode would differ."""
    encoder = lively(untrained_encoder())
    patches = PatchSet(corners(9), (80, 48), 32)
    with fake_slide(tmp_path, FakeSlide(speckled(900, 100))) as slide:
        _, together = drain(extract_features(slide, patches, encoder, device=CPU))
        _, alone = drain(extract_features(slide, PatchSet(patches.corners[4:5], (80, 48), 32), encoder, device=CPU))
    np.testing.assert_allclose(together.features[4], alone.features[0], atol=1e-5)
    assert np.abs(together.features[4] - together.features[5]).max() > 1e-4


def test_closing_the_stream_stops_reading(tmp_path: Path) -> None:
    fake = FakeSlide(speckled(900, 420))
    with fake_slide(tmp_path, fake) as slide:
        events = extract_features(slide, PatchSet(corners(10 * BATCH), (80, 48), 16), MeanColour(), device=CPU)
        next(events)
        events.close()
        done = len(fake.reads)
        assert done <= (1 + AHEAD) * BATCH, "the queue is bounded"
    assert len(fake.reads) == done


def test_a_read_that_fails_surfaces_as_its_sentence(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("disk gone")

    fake = FakeSlide(speckled(900, 420))
    with fake_slide(tmp_path, fake) as slide:
        fake.before_read = fail
        with pytest.raises(SlideError, match="disk gone"):
            drain(extract_features(slide, PatchSet(corners(3), (80, 48), 16), MeanColour(), device=CPU))


def test_enlarging_is_bilinear_bytes_in_bytes_out() -> None:
    batch = torch.tensor([[[[0, 100], [200, 255]]]], dtype=torch.uint8).expand(1, 3, 2, 2)
    big = resize_patches(batch, 4)
    assert big.dtype == torch.uint8 and big.shape == (1, 3, 4, 4)
    assert big[0, 0, 0].tolist() == [0, 25, 75, 100]
    assert big[0, 0, :, 0].tolist() == [0, 50, 150, 200]
    assert resize_patches(batch, None) is batch and resize_patches(batch, 2) is batch


def test_the_student_sees_enlarged_patches(tmp_path: Path) -> None:
    encoder = MeanColour()
    encode(encoder, np.zeros((2, 16, 16, 3), np.uint8), 24, CPU)
    assert encoder.batches == [(2, 3, 24, 24)]


def test_devices_are_resolved_or_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    for name in ("cuda", "mps", "abacus"):
        with pytest.raises(LrmilError, match=f"no device '{name}'.*auto, cpu") as caught:
            resolve_device(name)
        assert one_sentence(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


class Narrow(MeanColour):
    """A device that holds `most` patches at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(pixels, layers)


def test_memory_that_runs_out_halves_the_batch_and_loses_no_patch(tmp_path: Path) -> None:
    """It says so once, goes on with what fits, and the embeddings are those of a device with room."""
    patches = PatchSet(corners(2 * BATCH + 3), (80, 48), 16)
    with fake_slide(tmp_path, FakeSlide(speckled(900, 420))) as slide:
        events, found = drain(extract_features(slide, patches, Narrow(9), device=CPU, layers=("half",)))
        _, whole = drain(extract_features(slide, patches, MeanColour(), device=CPU, layers=("half",)))
    np.testing.assert_array_equal(found.features, whole.features)
    np.testing.assert_array_equal(found.layers["half"], whole.layers["half"])
    said = [e.message for e in events if isinstance(e, Notice)]
    assert said == [f"the memory of cpu ran out: {size} patches at once from now on" for size in (16, 8)]


def test_memory_for_not_even_one_patch_is_one_sentence(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(speckled(200, 100))) as slide:
        events = extract_features(slide, PatchSet(corners(2), (80, 48), 16), Narrow(0), device=CPU)
        with pytest.raises(LrmilError, match="does not hold a single patch; close other programs") as caught:
            drain(events)
    assert one_sentence(caught.value)


# ---------------------------------------------------------------- CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_cuda_pinned_batches_arrive_whole(tmp_path: Path) -> None:
    """A batch that is used before its transfer has ended, or after its memory is given away, would differ."""
    require_equal_features(tmp_path, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_cuda_batches_have_few_sizes_and_padding_is_cut_off() -> None:
    encoder = MeanColour()
    for count in range(1, 18):
        pixels = np.full((count, 8, 8, 3), count, np.uint8)
        output = encode(encoder, pixels, None, "cuda")
        assert output.embedding.shape[0] == count and bool((output.embedding == count).all())
    assert {batch[0] for batch in encoder.batches} == {1, 2, 4, 8, 16, 32}


@pytest.mark.parametrize(("count", "padded"), [(1, 1), (2, 2), (3, 4), (17, 32), (32, 32)])
def test_a_batch_is_filled_up_with_zeros_to_a_power_of_two(count: int, padded: int) -> None:
    batch = torch.full((count, 3, 2, 2), 7, dtype=torch.uint8)
    full = pad_batch(batch)
    assert full.shape == (padded, 3, 2, 2) and full.dtype == torch.uint8
    assert (full[:count] == 7).all() and (full[count:] == 0).all()


def test_two_passes_give_equal_features(tmp_path: Path) -> None:
    """The test for CUDA, on the device that every machine has."""
    require_equal_features(tmp_path, "cpu")


def require_equal_features(tmp_path: Path, device: str) -> None:
    """Check that a device gives the features of the CPU, over enough patches for several batch sizes."""
    features = []
    with fake_slide(tmp_path, FakeSlide(speckled(900, 4200))) as slide:
        for name in ("cpu", device):
            patches, encoder = PatchSet(corners(800), (80, 48), 32), lively(untrained_encoder()).to(name)
            features.append(drain(extract_features(slide, patches, encoder, device=torch.device(name)))[1].features)
    np.testing.assert_allclose(features[0], features[1], atol=1e-2 * np.abs(features[0]).max())


@pytest.mark.parametrize(
    "message", ["CUDA error: out of memory", "cuBLAS: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"]
)
def test_memory_that_ran_out_is_known_by_its_message_too(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message)) and not is_out_of_memory(RuntimeError("CUDA error: misaligned"))
