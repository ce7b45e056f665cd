"""Models of this machine: shipped with the package, in folders of bundles (a zoo), and cached from the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.encoders.hub_name import HUB_PREFIX
from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.models.bundle import SHIPPED, shipped_bundles
from napari_lrmil.core.models.card import CARD, Card, read_card

SHIPPED_PLACE, LOCAL_PLACE, CACHED_PLACE = "shipped", "local", "cached"


@dataclass(frozen=True)
class ListedModel:
    """A model that ``--bundle`` accepts.

    Attributes
    ----------
    name
        What ``--bundle`` takes: name of a shipped model, folder, or hub name.
    place
        ``shipped``, ``local`` or ``cached``.
    path
        Folder of the bundle.
    card
        Its card; None if it cannot be read.
    problem
        Why the card cannot be read; empty if it can.
    size
        Bytes of its files.
    """

    name: str
    place: str
    path: Path
    card: Card | None
    problem: str
    size: int


def list_models(folders: Sequence[Path] = ()) -> Iterator[ListedModel]:
    """Yield shipped models, those in `folders`, and those cached from the hub.

    A folder counts as one bundle, or as a folder of bundles or of training runs.

    Raises
    ------
    BundleError
        If one of `folders` does not exist.
    """
    for name in shipped_bundles():
        yield _listed(name, SHIPPED_PLACE, SHIPPED / name)
    for folder in folders:
        if not folder.is_dir():
            raise BundleError(folder, CARD, "there is no such folder; expected a folder of bundles")
        for path in bundle_folders(folder):
            yield _listed(str(path), LOCAL_PLACE, path)
    for name, path in _cached_bundles():
        yield _listed(name, CACHED_PLACE, path)


def bundle_folders(folder: Path) -> list[Path]:
    """Return the bundles in a folder of bundles or of training runs, or the folder itself if it is a bundle."""
    if (folder / CARD).is_file():
        return [folder]
    return sorted(card.parent for pattern in (f"*/{CARD}", f"*/bundle/{CARD}") for card in folder.glob(pattern))


def _listed(name: str, place: str, path: Path) -> ListedModel:
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    try:
        return ListedModel(name, place, path, read_card(path), "", size)
    except BundleError as error:
        return ListedModel(name, place, path, None, str(error).removeprefix(f"{path}: "), size)


def _cached_bundles() -> Iterator[tuple[str, Path]]:
    """Yield hub name and folder of every cached bundle; the revision is named unless it is the main branch."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        refs = repository / "refs"
        branches = {
            file.read_text(encoding="utf-8").strip(): file.relative_to(refs).as_posix()
            for file in sorted(refs.rglob("*"), key=lambda file: file.name == "main")  # main last: its name counts
            if file.is_file()
        }
        name = HUB_PREFIX + repository.name.removeprefix("models--").replace("--", "/", 1)
        for card in sorted(repository.glob(f"snapshots/*/{CARD}")):
            branch = branches.get(card.parent.name, card.parent.name)
            yield (name if branch == "main" else f"{name}@{branch}"), card.parent
