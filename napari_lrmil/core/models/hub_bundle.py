"""Bundles on the Hugging Face hub: download of the files of a bundle, verified by hash, and their cached copies.

Only the names in `BUNDLE_FILES` are downloaded. A repository may hold other files, pickles included; they stay there.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_lrmil.core.encoders.hub_name import HUB_PREFIX, HubName
from napari_lrmil.core.errors import BundleError, EncoderError, LrmilError
from napari_lrmil.core.formatting import format_size, shorten
from napari_lrmil.core.hashing import file_sha256
from napari_lrmil.core.models.card import CARD, README, STUDENT, TEACHER, read_card
from napari_lrmil.core.models.cohort_distance import EMBEDDINGS, PATIENT_EMBEDDINGS
from napari_lrmil.core.models.limits import LIMITS

BUNDLE_FILES = (CARD, README, STUDENT, TEACHER, LIMITS, EMBEDDINGS, PATIENT_EMBEDDINGS)
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
TIMEOUT_S = 30.0  # of one answer of the hub; its client would wait for ever
DISK_FACTOR = 1.1  # of the size of a download: names and file system blocks need a little more

Announce = Callable[[str], None]


def is_hub_bundle(where: str | Path) -> bool:
    """Return whether a bundle is named by its hub name."""
    return str(where).startswith(HUB_PREFIX)


def fetch_hub_bundle(name: str, announce: Announce = lambda _: None) -> Path:
    """Return the folder of a bundle on the hub: its cached copy, or a new download that was verified.

    A cached copy is used without a network call, also if the hub has a newer revision: a model must not change between
    two calls. `update_hub_bundle` downloads again.

    Parameters
    ----------
    name
        ``hf:owner/name`` or ``hf:owner/name@revision``.
    announce
        Called before a download, with host, number of files, size and licence.

    Raises
    ------
    BundleError
        If the hub does not have the bundle, requires an agreement, cannot be reached, or sent other bytes than it
        states.
    """
    hub_name = parse_hub_name(name)
    return find_cached_bundle(hub_name) or _download(hub_name, announce)


def update_hub_bundle(name: str, announce: Announce = lambda _: None) -> Path:
    """Return the folder of the newest revision of a bundle on the hub; raises as `fetch_hub_bundle` does."""
    return _download(parse_hub_name(name), announce)


def parse_hub_name(name: str) -> HubName:
    """Return the parts of a hub name; raise `BundleError` if it does not have the form."""
    try:
        return HubName.parse(name)
    except EncoderError as error:
        reason = str(error).removeprefix(f"{name}: ")
        raise BundleError(name, CARD, reason) from error


def require_cached_bundle(name: str) -> None:
    """Raise `BundleError` if a bundle on the hub would have to be downloaded: the window never calls the network."""
    hub_name = parse_hub_name(name)
    if find_cached_bundle(hub_name) is None:
        raise hub_error(
            hub_name,
            "the model is not in the cache of this machine; "
            f"`napari-lrmil models --update {hub_name.text}` downloads it",
        )


def find_cached_bundle(hub_name: HubName) -> Path | None:
    """Return the folder of the cached copy, or None if a file that its card names is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with hub_sentences(hub_name):
        try:
            options: dict[str, Any] = {"allow_patterns": list(BUNDLE_FILES), "local_files_only": True}
            folder = Path(snapshot_download(hub_name.repository, revision=hub_name.revision, **options))
        except LocalEntryNotFoundError:
            return None
    if not (folder / CARD).is_file():
        return None
    return folder if all((folder / file).is_file() for file in read_card(folder).hashes) else None


# ---------------------------------------------------------------- download


def _download(hub_name: HubName, announce: Announce) -> Path:
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise hub_error(
            hub_name,
            "the model was not downloaded before, and this program is offline (HF_HUB_OFFLINE, or `offline` of the "
            "site's settings); copy its folder to this machine, or go online once",
        )
    with hub_sentences(hub_name):
        info = _repository_info(hub_name, hub_name.revision)
        files = _bundle_files(hub_name, info)
        _require_disk(hub_name, sum(file.size or 0 for file in files))
        announce(_notice(hub_name, info, files))
        names = [file.rfilename for file in files]
        folder = Path(snapshot_download(hub_name.repository, revision=hub_name.revision, allow_patterns=names))
        if folder.name != info.sha:  # the branch moved meanwhile: hashes of that commit count
            files = _bundle_files(hub_name, _repository_info(hub_name, folder.name))
    _verify(hub_name, folder, files)
    return folder


def _repository_info(hub_name: HubName, revision: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi().model_info(hub_name.repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)


def _bundle_files(hub_name: HubName, info: Any) -> list[Any]:
    """Return the files of a repository that belong to a bundle; raise `BundleError` if it is not one."""
    names = [file.rfilename for file in info.siblings or ()]
    if missing := [name for name in (CARD, STUDENT) if name not in names]:
        seen = shorten(", ".join(sorted(names)), 100) or "no file"
        raise hub_error(
            hub_name,
            f"the repository is no bundle of napari-lrmil: {' and '.join(missing)} missing; it has {seen}. "
            "Nothing was downloaded",
        )
    return [file for file in info.siblings if file.rfilename in BUNDLE_FILES]


def _require_disk(hub_name: HubName, size: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size * DISK_FACTOR > free:
        raise hub_error(
            hub_name,
            f"the model has {format_size(size)}, but {format_size(free)} are free at {existing}; free some space, or "
            "set HF_HOME to another folder",
        )


def _notice(hub_name: HubName, info: Any, files: Sequence[Any]) -> str:
    from huggingface_hub import constants

    size = format_size(sum(file.size or 0 for file in files))
    licence = getattr(info.card_data, "license", None) or "not stated"
    host = constants.ENDPOINT.partition("://")[2] or constants.ENDPOINT
    return (
        f"{hub_name.text}: {len(files)} files, {size}, are downloaded from {host} (commit {str(info.sha)[:12]}); "
        f"licence: {licence}"
    )


# ---------------------------------------------------------------- hashes


def _verify(hub_name: HubName, folder: Path, files: Sequence[Any]) -> None:
    """Compare every file with the hash that the hub states, and the weights with the card.

    Raises
    ------
    BundleError
        If one differs. The files that differ are removed from the cache, so that the next call downloads them again.
    """
    wrong = [file.rfilename for file in files if not _has_stated_hash(folder / file.rfilename, file)]
    if wrong:
        _discard(folder, wrong)
        raise hub_error(
            hub_name,
            f"{' and '.join(wrong)} does not have the hash that the hub states; the transfer was damaged or altered on "
            "the way. The file was removed: download again, and ask your IT department about the proxy if it recurs",
        )
    hashes = read_card(folder).hashes
    wrong = [name for name, sha256 in hashes.items() if not _is_file_with(folder / name, sha256)]
    if wrong:
        _discard(folder, wrong)
        raise hub_error(
            hub_name,
            f"{' and '.join(wrong)} is not the file that {CARD} describes: the repository holds parts of different "
            "models; ask its owner to push the whole bundle again",
        )


def _is_file_with(path: Path, sha256: str) -> bool:
    return path.name in BUNDLE_FILES and path.is_file() and file_sha256(path) == sha256


def _has_stated_hash(path: Path, file: Any) -> bool:
    """Return whether a file has the hash of the hub: SHA-256 of large files, git's SHA-1 of small ones.

    Mirrors may state neither. Then the name of the cached file counts, which is the etag of the transfer.
    """
    stated = file.lfs.sha256 if file.lfs is not None else file.blob_id
    etag = stated or path.resolve().name
    if not path.is_file():
        return False
    if len(etag) == 64:
        return file_sha256(path) == etag
    # Another etag than the two kinds of hash says nothing of the content; the card has hashes of the weights.
    return len(etag) != 40 or _git_sha1(path) == etag


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _discard(folder: Path, names: Sequence[str]) -> None:
    """Remove files of a cached copy: each link, and what it leads to."""
    for name in names:
        path = folder / name
        while path.is_symlink():
            target = path.parent / path.readlink()
            path.unlink()
            path = target
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- errors


def hub_error(hub_name: HubName, message: str) -> BundleError:
    """Return an error about a bundle on the hub."""
    return BundleError(hub_name.text, CARD, message)


@contextmanager
def hub_sentences(hub_name: HubName) -> Iterator[None]:
    """Turn errors of the hub's client into `BundleError` with the next step."""
    try:
        yield
    except LrmilError:
        raise
    # Its HTTP library raises errors of its own, and another one in other versions of huggingface_hub.
    except Exception as error:
        raise hub_error(hub_name, hub_reason(hub_name, error)) from error


def hub_reason(hub_name: HubName, error: Exception) -> str:
    """Return what an error of the hub's client means, and what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{hub_name.repository}"
    sentences: Mapping[type[Exception], str] = {
        errors.GatedRepoError: f"the model is gated: agree to its terms at {page}, then call `hf auth login` once",
        errors.RepositoryNotFoundError: f"{page} does not exist, or is private; check the name, or call "
        "`hf auth login` if it is yours",
        errors.RevisionNotFoundError: f"{page} has no revision {hub_name.revision}; leave @{hub_name.revision} out, or "
        "name a branch, tag or commit",
        errors.HFValidationError: "this is no name of a repository; expected hf:owner/name of letters, digits, "
        "'-', '_' and '.'",
    }
    for kind, sentence in sentences.items():
        if isinstance(error, kind):
            return sentence
    reason = shorten(str(error) or type(error).__name__, 160)
    if isinstance(error, OSError) and error.errno in NO_WRITING:
        return f"{constants.HF_HUB_CACHE} cannot be written ({reason}); set HF_HOME to a folder that you may write to"
    if "Consistency check" in str(error):
        return f"the transfer from {page} was cut off ({reason}); nothing was kept of that file, try again"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        advice = "check that your token may do this" if status in (401, 403) else "try again later"
        return f"{constants.ENDPOINT} answered with status {status} ({reason}); {advice}"
    return (
        f"{page} cannot be reached ({reason}); check the network and the proxy (HTTPS_PROXY, HF_ENDPOINT; "
        "`napari-lrmil doctor` shows them), or name a folder"
    )
