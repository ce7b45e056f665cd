"""Push of a bundle to a repository on the Hugging Face hub, private unless the caller says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from napari_lrmil.core.encoders.hub_name import HUB_PREFIX, HubName
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.hub_bundle import TIMEOUT_S, hub_error, hub_sentences, parse_hub_name
from napari_lrmil.core.models.hub_card import REPOSITORY_FILES, write_repository
from napari_lrmil.core.models.sharing_terms import SharingTerms


@dataclass(frozen=True)
class PushedBundle:
    """Repository after a push: its page, the commit, and whether it is private."""

    page: str
    commit: str
    is_private: bool


def push_bundle(bundle: Bundle, name: str, terms: SharingTerms, *, public: bool = False) -> PushedBundle:
    """Push a bundle in one commit. Files of an earlier push that this bundle does not have are removed.

    Parameters
    ----------
    bundle
        The model.
    name
        ``owner/name``, with or without ``hf:``.
    terms
        Licence, see `napari_lrmil.core.models.sharing_terms.sharing_terms`.
    public
        Whether everybody may see a new repository.

    Raises
    ------
    BundleError
        If the bundle is damaged, there is no access token, the hub refuses, or an existing repository has another
        visibility than `public` says.
    """
    hub_name = parse_push_name(name)
    _require_access(hub_name)
    with TemporaryDirectory(prefix="napari-lrmil-push-") as temporary:
        folder = Path(temporary)
        write_repository(folder, bundle, hub_name.repository, terms)
        with hub_sentences(hub_name):
            present = _existing_files(hub_name, public)
            return _commit(hub_name, folder, bundle, present, public)


def parse_push_name(name: str) -> HubName:
    """Return the repository of ``owner/name``; raise `BundleError` for another form, or with a revision."""
    hub_name = parse_hub_name(f"{HUB_PREFIX}{name.removeprefix(HUB_PREFIX)}")
    if hub_name.revision is not None:
        raise hub_error(hub_name, f"a push makes a new commit of its own; leave @{hub_name.revision} out")
    return hub_name


def _require_access(hub_name: HubName) -> None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise hub_error(hub_name, "this program is offline (HF_HUB_OFFLINE, or `offline` of the site's settings)")
    if get_token() is None:
        raise hub_error(
            hub_name,
            "there is no access token; call `hf auth login` once, with a token that may write, or set HF_TOKEN",
        )


def _existing_files(hub_name: HubName, public: bool) -> list[str] | None:
    """Return the files of the repository; None if there is none yet.

    Raises
    ------
    BundleError
        If it is public without `public`, or private with it: the visibility of a repository is never changed here.
    """
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(hub_name.repository, timeout=TIMEOUT_S)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return None
    if bool(info.private) == public:
        seen, option = ("private", "leave --public out") if public else ("public", "add --public")
        raise hub_error(
            hub_name, f"the repository exists and is {seen}; {option}, change it on its page, or take another name"
        )
    return [file.rfilename for file in info.siblings or ()]


def _require_private(hub_name: HubName, public: bool) -> None:
    """Raise `BundleError` if a new repository is public although it must be private, before a file is in it."""
    from huggingface_hub import HfApi

    if not public and not HfApi().model_info(hub_name.repository, timeout=TIMEOUT_S).private:
        raise hub_error(
            hub_name,
            "the hub made the new repository public although it was to be private: delete it; nothing was sent",
        )


def _commit(
    hub_name: HubName, folder: Path, bundle: Bundle, present: Sequence[str] | None, public: bool
) -> PushedBundle:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    api = HfApi()
    if present is None:
        api.create_repo(hub_name.repository, private=not public)
        _require_private(hub_name, public)
    files = sorted(path.name for path in folder.iterdir())
    stale = [name for name in present or () if name in REPOSITORY_FILES and name not in files]
    operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in files]
    operations += [CommitOperationDelete(name) for name in stale]
    message = f"{bundle.name}, bundle {bundle.sha256[:12]}"
    commit = api.create_commit(hub_name.repository, operations, commit_message=message)
    return PushedBundle(f"{constants.ENDPOINT}/{hub_name.repository}", str(commit.oid), not public)
