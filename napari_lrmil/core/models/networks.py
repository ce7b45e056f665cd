"""Networks of a bundle in torch: built from the card, filled from its files, and written as a new bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from napari_lrmil.core.atomic_files import atomic_write, write_json, write_text
from napari_lrmil.core.encoders import (
    FROZEN,
    AlignedEncoder,
    LoadedEncoder,
    NetworkEncoder,
    build_encoder,
    half_tensors,
    load_weights,
    module_sha256,
    pool_layers,
    reduce_embedding,
    resolve_encoder,
)
from napari_lrmil.core.encoders.base import Reduction
from napari_lrmil.core.encoders.weights import require_matching
from napari_lrmil.core.errors import BundleError, EncoderError
from napari_lrmil.core.hashing import file_sha256
from napari_lrmil.core.models.aggregators import build_aggregator
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import (
    CARD,
    LINEAR,
    OF_STUDENTS,
    README,
    SCHEMA_VERSION,
    STUDENT,
    TEACHER,
    Card,
    HeadOrigin,
    NetworkCard,
    card_sha256,
    card_text,
    card_values,
)
from napari_lrmil.core.models.cohort_distance import EMBEDDINGS, PATIENT_EMBEDDINGS
from napari_lrmil.core.models.limits import LIMITS, ModelLimits, limits_lines, limits_values
from napari_lrmil.core.models.mil import MIL, GatedAttentionMIL, LinearTopkMIL, build_mil
from napari_lrmil.version import __version__

Network = TypeVar("Network", bound=nn.Module)


class StudentNetwork(nn.Module):
    """LR encoder, distilled or fitted to labels alone, and its MIL."""

    def __init__(self, encoder: AlignedEncoder, mil: MIL) -> None:
        super().__init__()
        self.encoder, self.mil = encoder, mil


class TeacherNetwork(nn.Module):
    """Frozen HR encoder and its MIL."""

    def __init__(self, encoder: NetworkEncoder, mil: MIL) -> None:
        super().__init__()
        self.encoder, self.mil = encoder, mil


def load_student(bundle: Bundle) -> StudentNetwork:
    """Return the student of a bundle, in evaluation mode on the CPU.

    Raises
    ------
    BundleError
        If the weights are missing, do not match their hash, or do not fit the card.
    """
    card = bundle.card.student

    def build() -> StudentNetwork:
        encoder = AlignedEncoder(build_encoder(card.encoder), card.dim)
        return StudentNetwork(encoder, _mil_of_card(card, bundle))

    return _build_filled(build, bundle, STUDENT)


def load_teacher(bundle: Bundle) -> TeacherNetwork:
    """Return the HR teacher of a bundle, in evaluation mode on the CPU.

    Raises
    ------
    BundleError
        If the bundle has none, or its weights are missing, do not match their hash, or do not fit the card.
    """
    card = bundle.require_teacher()

    if card.encoder.family == FROZEN:  # weights that may not be shared: the bundle only names the encoder
        return _load_named_teacher(bundle, card)
    return _build_filled(
        lambda: TeacherNetwork(build_encoder(card.encoder), _mil_of_card(card, bundle)), bundle, TEACHER
    )


def _mil_of_card(card: NetworkCard, bundle: Bundle) -> MIL:
    if card.aggregator in OF_STUDENTS:
        return build_mil(card.dim, len(bundle.card.classes), card.hidden, card.top_share, card.projection)
    return build_aggregator(card.aggregator, card.dim, len(bundle.card.classes), card.hidden, card.top_share)


def load_teacher_mil(bundle: Bundle) -> MIL:
    """Return the MIL of a bundle's teacher without the encoder, in evaluation mode on the CPU.

    Raises as `load_teacher` does.
    """
    card = bundle.require_teacher()
    return _build_filled(lambda: _mil_of_card(card, bundle), bundle, TEACHER, "mil.")


def _load_named_teacher(bundle: Bundle, card: NetworkCard) -> TeacherNetwork:
    """Return a teacher of which the bundle has the MIL and, if there is one, the reduction of the embedding."""

    def build() -> nn.ModuleDict:
        shared: dict[str, nn.Module] = {"mil": _mil_of_card(card, bundle)}
        if card.encoder.pca is not None:
            shared["reduction"] = Reduction(width, card.encoder.pca)
        return nn.ModuleDict(shared)

    components = load_tensors(bundle, TEACHER).get("reduction.components")
    width = 0 if components is None else components.shape[-1]  # the card has no width of an embedding before reduction
    filled = _build_filled(build, bundle, TEACHER)
    mil, loaded = filled["mil"], _named_encoder(bundle, card)
    assert isinstance(mil, MIL)
    if card.encoder.pca is not None:
        loaded = reduce_embedding(loaded, filled["reduction"].state_dict())
    return TeacherNetwork(loaded.encoder, mil)


def _named_encoder(bundle: Bundle, card: NetworkCard) -> LoadedEncoder:
    loaded = resolve_encoder(card.encoder.name)
    if loaded is None or loaded.sha256 != card.encoder_sha256:
        reason = f"{card.encoder.name} is not the encoder that this bundle was trained with; run without --teacher"
        raise BundleError(bundle.path, TEACHER, reason)
    return pool_layers(loaded, card.encoder.pooled)


def _build_filled(build: Callable[[], Network], bundle: Bundle, file: str, prefix: str = "") -> Network:
    """Return the network of the card with the weights of a file, or with those whose names begin with `prefix`.

    It is first built without memory: settings that ask for more than the file holds are refused before they fill it.

    Raises
    ------
    BundleError
        If the settings are impossible, or the weights do not fit.
    """
    stored = load_tensors(bundle, file)
    tensors = {name.removeprefix(prefix): values for name, values in stored.items() if name.startswith(prefix)}
    try:
        with torch.device("meta"):
            require_matching(build(), tensors)
        network = build()
        load_weights(network, tensors)
    except Exception as error:  # transformers raises errors of any kind for settings that it cannot build
        reason = error if isinstance(error, EncoderError) else f"no network has these settings ({error})"
        raise BundleError(bundle.path, file, f"{file}: {reason}; the bundle is damaged, copy it again") from error
    return network.eval().requires_grad_(False)


def load_tensors(bundle: Bundle, file: str) -> dict[str, Tensor]:
    """Return the tensors of one of the bundle's files; raises as `Bundle.verified_file` does."""
    from safetensors.torch import load_file

    return load_file(bundle.verified_file(file))


def write_bundle(
    folder: Path,
    card: Mapping[str, Any],
    student: StudentNetwork,
    teacher: TeacherNetwork | None,
    limits: ModelLimits | None = None,
    origin: HeadOrigin | None = None,
) -> Bundle:
    """Write a bundle and open it. `lrmil.json` is written last, so a folder with it is complete.

    Parameters
    ----------
    folder
        Target folder.
    card
        Fields of `Card` without versions, networks and hashes.
    student, teacher
        The networks. Their weights are stored as float16 (see `round_to_half`).
    limits
        Operating point and conformal scores; None writes none.
    origin
        File of the teacher's MIL if another program trained it. Its weights are stored as float32, as they were given.
    """
    from safetensors.torch import save_file

    networks: dict[str, StudentNetwork | TeacherNetwork] = {STUDENT: student}
    if teacher is not None:
        networks[TEACHER] = teacher
    folder.mkdir(parents=True, exist_ok=True)
    for old in (CARD, STUDENT, TEACHER, LIMITS, EMBEDDINGS, PATIENT_EMBEDDINGS):
        (folder / old).unlink(missing_ok=True)
    for file, network in networks.items():
        with atomic_write(folder / file) as partial:
            save_file(_stored_tensors(network, is_exact=network is teacher and origin is not None), partial)
    full = Card(
        schema_version=SCHEMA_VERSION,
        version=__version__,
        hashes={file: file_sha256(folder / file) for file in networks},
        student=_network_card(student),
        teacher=_network_card(teacher, origin) if teacher is not None else None,
        **({"licence": _licences(student, teacher)} | dict(card)),
    )
    if limits is not None:
        limits = limits.model_copy(update={"bundle_sha256": card_sha256(full)})
        write_json(folder / LIMITS, limits_values(limits))
    write_text(folder / README, card_text(full, limits_lines(limits) if limits is not None else ()))
    write_json(folder / CARD, card_values(full))
    return Bundle(folder)


def _shared_part(network: StudentNetwork | TeacherNetwork) -> nn.Module:
    """Return what the bundle holds of a network: not the weights of an encoder that it only names."""
    if network.encoder.spec.family != FROZEN:
        return network
    reduction = getattr(network.encoder, "reduction", None)
    return nn.ModuleDict({"mil": network.mil} | ({} if reduction is None else {"reduction": reduction}))


def _stored_tensors(network: StudentNetwork | TeacherNetwork, *, is_exact: bool) -> dict[str, Tensor]:
    """Return the tensors of a network's file: float16, or float32 of the MIL if it is stored exactly."""
    tensors = half_tensors(_shared_part(network))
    if is_exact:
        state = network.mil.state_dict()
        tensors |= {f"mil.{name}": values.float().cpu().clone().contiguous() for name, values in state.items()}
    return tensors


def _licences(*networks: StudentNetwork | TeacherNetwork | None) -> str:
    return ", ".join(sorted({network.encoder.spec.licence for network in networks if network is not None}))


def _network_card(network: StudentNetwork | TeacherNetwork, origin: HeadOrigin | None = None) -> NetworkCard:
    spec = network.encoder.spec
    sha256 = module_sha256(network.encoder.get_submodule("net")) if spec.family == FROZEN else ""
    mil = network.mil
    projection = mil.projection if isinstance(mil, GatedAttentionMIL) else None
    share = mil.top_share if isinstance(mil, LinearTopkMIL) else None
    return NetworkCard(
        encoder=spec,
        dim=mil.dim,
        hidden=mil.hidden,
        encoder_sha256=sha256,
        aggregator=mil.aggregator,
        top_share=share if mil.aggregator == LINEAR else None,  # of mean and max pooling the name says it
        projection=None if projection is None else projection.out_features,
        origin=origin,
    )
