"""Variants of phantoms: finer resolution, no stated resolution, artefacts, other file formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.phantom.look import PhantomLook


@dataclass(frozen=True)
class Variant:
    """Differences from an ordinary phantom."""

    about: str
    zoom: int = 1  # factor of the pixels per side, relative to the 20x slide
    container: str | None = None  # one of `CONTAINERS`; None: Aperio's
    states_mpp: bool = True  # whether the file states its resolution
    fold: bool = False
    pen: str | None = None  # ink of the pen

    def apply(self, look: PhantomLook) -> PhantomLook:
        """Return a look with the fold and the pen of this variant added."""
        return replace(look, fold=look.fold or self.fold, pen=self.pen or look.pen)


VARIANTS = {
    "40x": Variant("0.25 µm: the same tissue in twice the pixels each way", zoom=2),
    "no-mpp": Variant("a file that does not tell its resolution", states_mpp=False),
    "fold": Variant("a dark band of tissue that lies double", fold=True),
    "pen": Variant("a green marker's stroke over tissue and glass", pen="green"),
    "pen-blue": Variant("a blue one", pen="blue"),
    "pen-black": Variant("a black one", pen="black"),
    "bounds": Variant("a Leica SCN whose scan lies off the corner of the slide", container="leica"),
    "svs": Variant("an Aperio SVS by name", container="aperio"),
    "generic": Variant("a plain pyramidal TIFF", container="generic"),
    "ome": Variant("an OME-TIFF, of which OpenSlide sees level 0 only", container="ome"),
}


def combine_variants(names: Sequence[str]) -> Variant:
    """Return one variant that combines all of `names`.

    Raises
    ------
    ConfigError
        If a name is unknown, or two variants need different containers or inks.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ConfigError(f"there is no variant {unknown[0]!r}; choose among {', '.join(VARIANTS)}")
    chosen = [VARIANTS[name] for name in names]
    return Variant(
        ", ".join(names),
        zoom=max((v.zoom for v in chosen), default=1),
        container=_require_single([v.container for v in chosen], names),
        states_mpp=all(v.states_mpp for v in chosen),
        fold=any(v.fold for v in chosen),
        pen=_require_single([v.pen for v in chosen], names),
    )


def _require_single(values: Sequence[str | None], names: Sequence[str]) -> str | None:
    """Return the only value that is not None, or None; raise `ConfigError` if there are several."""
    distinct = {value for value in values if value is not None}
    if len(distinct) > 1:
        raise ConfigError(f"the variants {', '.join(names)} exclude each other: {' and '.join(sorted(distinct))}")
    return distinct.pop() if distinct else None
