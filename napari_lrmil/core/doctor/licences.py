"""Licences of the distributions that this program needs, as they state them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions

from packaging.requirements import Requirement

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.extras import EXTRAS

PROGRAM = "napari-lrmil"
NOT_STATED = "not stated"
CLASSIFIER = "License :: "
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL)\b|GNU|Mozilla", re.IGNORECASE)
MAX_LICENCE = 60  # characters: some state the whole text
UNSHIPPED_EXTRAS = ("dev", "docs", "all")  # tools of developers, and the sum of the others
EXTRA_MARKER = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True)
class DependencyLicence:
    """A distribution, its version, and its licence.

    Attributes
    ----------
    name, version
        As the distribution states them; version ``not installed`` if it is missing.
    licence
        Licence as stated; `NOT_STATED` if it states none.
    needed_by
        ``core``, or the extra of this program that brings it.
    is_copyleft
        Whether the licence asks that changes of the distribution itself, or programs that link to it, be published
        under its terms: GPL, LGPL, MPL and others.
    """

    name: str
    version: str
    licence: str
    needed_by: str
    is_copyleft: bool


def dependency_licences() -> Iterator[DependencyLicence]:
    """Yield this program's dependencies and those of these, installed ones alone, by name.

    Distributions of extras that are not installed are left out, and those that nothing of this program needs.

    Raises
    ------
    ConfigError
        If this program itself is not installed as a package.
    """
    if _installed(PROGRAM) is None:
        raise ConfigError(f"{PROGRAM} is not installed as a package, so its dependencies are not known; pip install it")
    needed = _collect_needed()
    for name in sorted(needed):
        installed = _installed(name)
        if installed is None or name == _normal(PROGRAM):
            continue
        licence = stated_licence(installed)
        label = str(installed.metadata["Name"])
        is_copyleft = COPYLEFT.search(licence) is not None
        yield DependencyLicence(label, installed.version, licence, needed[name], is_copyleft)


def _collect_needed() -> dict[str, str]:
    """Return distribution -> ``core``, or the extra that brings it. What both need is the core's."""
    needed: dict[str, str] = {}
    queue = [(PROGRAM, "core", frozenset[str]())]
    own = [*_requirements(PROGRAM), *_requirements_of_new_extras()]
    for requirement, extra in sorted(own, key=lambda pair: pair[1]):  # the core's are "": first
        if extra not in UNSHIPPED_EXTRAS:
            queue.append((requirement.name, f"extra {extra}" if extra else "core", frozenset(requirement.extras)))
        if extra == "":
            _follow(queue, needed)
    _follow(queue, needed)
    return needed


def _follow(queue: list[tuple[str, str, frozenset[str]]], needed: dict[str, str]) -> None:
    """Empty a queue of (distribution, needed by, its extras), and add each to `needed` with what it requires."""
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        name, label, extras = queue.pop(0)
        if (key := (_normal(name), extras)) in seen or _installed(name) is None:
            continue
        seen.add(key)
        is_new = key[0] not in needed
        needed.setdefault(key[0], label)
        if key[0] == _normal(PROGRAM) or not (is_new or extras):
            continue  # its own requirements are in the queue, or were followed before
        for requirement, extra in _requirements(name):
            if not extra or extra in extras:
                queue.append((requirement.name, label, frozenset(requirement.extras)))


def _requirements(name: str) -> Iterator[tuple[Requirement, str]]:
    """Yield the requirements of a distribution on this system, each with the extra that asks for it, or empty."""
    installed = _installed(name)
    for text in (installed.requires if installed is not None else None) or ():
        requirement = Requirement(text)
        match = EXTRA_MARKER.search(str(requirement.marker or ""))
        extra = match[1] if match else ""
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement, extra


def _requirements_of_new_extras() -> Iterator[tuple[Requirement, str]]:
    """Yield the requirements of extras that the installed metadata of this program does not know.

    The metadata of a source tree are of the day when it was installed, and extras may have come since.
    """
    installed = _installed(PROGRAM)
    listed = installed.metadata.get_all("Provides-Extra") if installed is not None else None
    modules_by_extra = {extra: modules for extra, modules in EXTRAS.items() if extra not in (listed or ())}
    owners = packages_distributions() if modules_by_extra else {}
    for extra, modules in modules_by_extra.items():
        for name in dict.fromkeys(name for module in modules for name in owners.get(module, ())):
            yield Requirement(name), extra


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def stated_licence(installed: Distribution) -> str:
    """Return the licence of a distribution: its SPDX expression, or its classifiers, or its free text."""
    metadata = installed.metadata
    if "License-Expression" in metadata:
        return str(metadata["License-Expression"])
    classifiers = [str(text) for text in metadata.get_all("Classifier") or () if str(text).startswith(CLASSIFIER)]
    names = [text.rpartition(" :: ")[2] for text in classifiers if text != "License :: OSI Approved"]
    if names:
        return ", ".join(names)
    text = " ".join(str(metadata["License"] or "").split()) if "License" in metadata else ""
    if not text or text.upper() == "UNKNOWN":
        return NOT_STATED
    return text if len(text) <= MAX_LICENCE else f"{text[:MAX_LICENCE]}…"
