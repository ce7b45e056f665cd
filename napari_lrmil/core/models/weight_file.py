"""Checks of a bundle's weights: format, types, values, and the shapes that the card states. They need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.formatting import shorten
from napari_lrmil.core.models.card import GATED, IN_TORCH, Card, NetworkCard

FLOATS, COUNTERS = ("F16", "F32"), ("I64",)  # safetensors names; batch norm has a counter of batches
POSITIVE, NOT_NEGATIVE = "deviation", "running_var"  # ends of names: an instance is divided by one, by the other's root
EXPONENT_F16 = np.uint16(0x7C00)  # all its bits are set in infinities and NaN only
MAX_REASON_CHARS = 200  # of a library's message
FILE_STARTS = (  # first bytes of files that people have in place of weights
    (b"version https://git-lfs", "it is a pointer of Git LFS; fetch the file itself with git lfs pull"),
    (b"<", "it is a web page or XML, from a download that failed; download it again"),
    (b"\x80", "it is a pickle, which could run code when it is read; convert it to safetensors"),
    (b"PK", "it is a zip archive or a file of torch.save, which could run code when it is read; export it again"),
)


def check_weights(path: Path, card: Card, network: NetworkCard) -> None:
    """Check a bundle's file of weights, whose hash has been checked already.

    Parameters
    ----------
    path
        The file.
    card
        Card of the bundle.
    network
        Part of the card that describes the network of this file.

    Raises
    ------
    BundleError
        If the file is not safetensors, a tensor has a type that no bundle has, a value is not finite or impossible, or
        the MIL does not fit the card.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            _check_types(path, {name: part.get_dtype() for name, part in slices.items()})
            _check_mil_shapes(path, {name: tuple(part.get_shape()) for name, part in slices.items()}, card, network)
            for name in slices:
                _check_values(path, name, file.get_tensor(name))
    except SafetensorError as error:
        raise _refusal(path, f"not a safetensors file: {_describe_start(path, error)}") from error


def _refusal(path: Path, reason: str) -> BundleError:
    return BundleError(path.parent, path.name, f"{path.name}: {reason}")


def _describe_start(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        return "it is empty; copy the bundle again"
    for prefix, reason in FILE_STARTS:
        if start.startswith(prefix):
            return reason
    return f"{shorten(str(error), MAX_REASON_CHARS)}; the bundle is damaged, copy it again"


def _check_types(path: Path, types: dict[str, str]) -> None:
    for name, kind in types.items():
        if kind not in (COUNTERS if name.endswith("num_batches_tracked") else FLOATS):
            raise _refusal(path, f"tensor {name} has type {kind}; expected {' or '.join(FLOATS)}; export it again")


def _check_mil_shapes(path: Path, shapes: dict[str, tuple[int, ...]], card: Card, network: NetworkCard) -> None:
    """Check the tensors of the MIL; those of the encoder are checked when it is built."""
    dim, hidden, classes = network.dim, network.hidden, len(card.classes)
    width = network.projection or dim
    expected: dict[str, tuple[int, ...]] = {
        "mean": (dim,),
        "deviation": (dim,),
        "classifier.weight": (classes, width),
        "classifier.bias": (classes,),
    }
    gate: dict[str, tuple[int, ...]] = {
        "V.weight": (hidden, width),
        "V.bias": (hidden,),
        "U.weight": (hidden, width),
        "U.bias": (hidden,),
        "w.weight": (1, hidden),
    }
    if network.projection is not None:
        gate |= {"projection.weight": (width, dim), "projection.bias": (width,)}
    if network.aggregator == GATED:
        expected |= gate
    elif network.aggregator in IN_TORCH:  # the rest of their shapes is checked when the network is built
        expected = {name: expected[name] for name in ("mean", "deviation")}
    for tensor, shape in expected.items():
        name = f"mil.{tensor}"
        if shapes.get(name) != shape:
            seen = "is missing" if name not in shapes else f"has shape {shapes[name]}"
            reason = (
                f"tensor {name} {seen}, and the card states {shape} (classes {classes}, dim {dim}, hidden {hidden})"
            )
            raise _refusal(path, f"the weights do not fit the card: {reason}; the bundle is damaged, copy it again")


def _check_values(path: Path, name: str, values: np.ndarray[Any, np.dtype[Any]]) -> None:
    if not _is_finite(values):
        count = int(np.count_nonzero(~np.isfinite(values)))
        reason = f"{count} of {values.size} values of tensor {name} are NaN or infinite; the training has diverged"
        raise _refusal(path, f"{reason} or the bundle is damaged; train it again or copy it again")
    ending = name.rpartition(".")[2]
    if ending == POSITIVE and (values <= 0).any():
        raise _refusal(path, f"tensor {name} has values of 0 or below, which cannot be deviations; copy it again")
    if ending == NOT_NEGATIVE and (values < 0).any():
        raise _refusal(path, f"tensor {name} has negative values, which cannot be variances; copy it again")


def _is_finite(values: np.ndarray[Any, np.dtype[Any]]) -> bool:
    if values.dtype == np.float16:  # by bits: several times as fast as isfinite, which converts every value
        return not bool(((values.view(np.uint16) & EXPONENT_F16) == EXPONENT_F16).any())
    return bool(np.isfinite(values).all())
