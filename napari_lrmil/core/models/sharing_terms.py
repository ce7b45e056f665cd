"""Licences of encoders: whether weights that derive from them may be shared, and their names on the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from napari_lrmil.core.errors import BundleError, EncoderError
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import NetworkCard

# Licences that allow to share derived weights -> their identifier on the hub. Whatever else one asks (name the source,
# the same licence, no commerce) goes with the model, because the card names the licence.
SHAREABLE = {
    "mit": "mit",
    "apache-2.0": "apache-2.0",
    "bsd-3-clause": "bsd-3-clause",
    "bsd-2-clause": "bsd-2-clause",
    "cc0-1.0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "gpl-3.0": "gpl-3.0",
    "agpl-3.0": "agpl-3.0",
}
NO_DERIVATIVES = re.compile(r"\bnd\b|no[- ]?deriv", re.IGNORECASE)
PERMISSIVE = ("mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0")  # the last asks most, and so stands for all


@dataclass(frozen=True)
class SharingTerms:
    """Licence of a shared bundle.

    Attributes
    ----------
    hub_id
        Identifier of the licence on the hub; ``other`` if it has none.
    licences
        The licences as the encoders state them, or as the user stated them.
    """

    hub_id: str
    licences: tuple[str, ...]


def sharing_terms(bundle: Bundle, stated: str | None = None) -> SharingTerms:
    """Return the licence under which a bundle may be shared.

    Parameters
    ----------
    bundle
        The model. Its encoders count, the teacher's even if the teacher was left out.
    stated
        Licence that the user states for encoders whose licence is unknown to this program.

    Raises
    ------
    BundleError
        If a licence forbids to share derived weights, or is unknown and none was stated.
    """
    licences = _encoder_licences(bundle)
    if forbidden := [text for text in licences if NO_DERIVATIVES.search(text)]:
        raise BundleError(
            bundle.path,
            "licence",
            f"the licence {forbidden[0]} of the encoder {_owner_of(bundle, forbidden[0])} forbids to share what "
            "derives from it, and the student was distilled from it; keep the bundle in your institution, or train "
            "with another encoder (`napari-lrmil encoders` lists licences)",
        )
    unknown = [text for text in licences if _identifier(text) not in SHAREABLE]
    if unknown and not stated:
        raise BundleError(
            bundle.path,
            "licence",
            f"this program does not know whether the licence '{unknown[0]}' of the encoder "
            f"{_owner_of(bundle, unknown[0])} allows to share derived weights; read its terms, and if it does, state "
            "the licence with --licence",
        )
    if stated and unknown:
        licences = tuple(dict.fromkeys((*(text for text in licences if text not in unknown), stated)))
    return SharingTerms(_hub_id(licences), licences)


def _encoder_licences(bundle: Bundle) -> tuple[str, ...]:
    """Return the licences of card and encoders, without doubles; ``unknown`` if none is stated."""
    card = bundle.card
    networks = [card.student, *([card.teacher] if card.teacher is not None else [])]
    texts = [*card.licence.split(","), *(network.encoder.licence for network in networks)]
    texts += [text for network in networks for text in _registry_licences(network)]
    stated = dict.fromkeys(text.strip() for item in texts for text in item.split(",") if text.strip())
    return tuple(stated) or ("unknown",)


def _registry_licences(network: NetworkCard) -> list[str]:
    """Return what the registry says of a foundation encoder; nothing without the extra `encoders`."""
    from napari_lrmil.core.encoders.spec import FROZEN

    if network.encoder.family != FROZEN:
        return []
    from napari_lrmil.core.encoders import foundation_card

    try:
        return [foundation_card(network.encoder.name.removeprefix(f"{FROZEN}:").partition("@")[0]).licence]
    except EncoderError:  # without the extra there is no registry; the card has the licence of the training
        return []


def _owner_of(bundle: Bundle, licence: str) -> str:
    """Return the name of the encoder that has a licence, or a description if the bundle left it out."""
    for network in (bundle.card.teacher, bundle.card.student):
        if network is not None and licence in network.encoder.licence:
            return network.encoder.name
    return "of the teacher" if bundle.card.teacher is None else bundle.card.teacher.encoder.name


def _identifier(licence: str) -> str:
    """Return a licence in the spelling of `SHAREABLE`: ``Apache 2.0`` and ``Apache-2.0`` are one."""
    return re.sub(r"[\s_]+", "-", licence.strip().lower())


def _hub_id(licences: Sequence[str]) -> str:
    identifiers = {_identifier(text) for text in licences}
    if len(identifiers) == 1:
        return SHAREABLE.get(identifiers.pop(), "other")
    if identifiers <= set(PERMISSIVE):
        return max(identifiers, key=PERMISSIVE.index)
    return "other"
