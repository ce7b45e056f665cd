"""Settings of a site: one YAML file for all users of a machine or cluster, below environment variables.

The file's values become environment variables of this process, which its libraries and child processes read. A variable
that is set already stays: the user, or a module of the cluster, has set it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_lrmil.core.errors import ConfigError

FILE_VARIABLE = "NAPARI_LRMIL_SITE"  # path of the file
FILE = "site.yaml"
DEVICE_VARIABLE, THREADS_VARIABLE, MODELS_VARIABLE = (
    "NAPARI_LRMIL_DEVICE",
    "NAPARI_LRMIL_THREADS",
    "NAPARI_LRMIL_MODELS",
)
DEVICES = ("auto", "cpu", "cuda", "mps")
MAX_THREADS = 4096


@dataclass(frozen=True)
class SiteEntry:
    """One setting of a site.

    Attributes
    ----------
    key
        Key in the file.
    variables
        Environment variables that the file's value becomes.
    kind
        ``folder``, ``file``, ``folders``, ``text``, ``switch``, ``device`` or ``count``.
    default
        What holds if nobody sets it, in words.
    others
        Further variables by which a user sets the same; the file's value then does not count.
    """

    key: str
    variables: tuple[str, ...]
    kind: str
    default: str
    others: tuple[str, ...] = ()

    @property
    def set_variable(self) -> str | None:
        """The environment variable that sets it now, or None. Proxies may be spelt in lower case."""
        names = (*self.variables, *self.others)
        return next((name for name in (*names, *map(str.lower, names)) if os.environ.get(name)), None)


ENTRIES = (
    SiteEntry("cache", ("NAPARI_LRMIL_CACHE",), "folder", "the user's cache folder"),
    SiteEntry("hub_cache", ("HF_HUB_CACHE",), "folder", "the Hugging Face cache of the user", ("HF_HOME",)),
    SiteEntry("hub_endpoint", ("HF_ENDPOINT",), "text", "https://huggingface.co"),
    SiteEntry("proxy", ("HTTPS_PROXY", "HTTP_PROXY"), "text", "none", ("ALL_PROXY",)),
    SiteEntry("no_proxy", ("NO_PROXY",), "text", "none"),
    SiteEntry("ca_bundle", ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), "file", "that of the system", ("SSL_CERT_DIR",)),
    SiteEntry("offline", ("HF_HUB_OFFLINE",), "switch", "no", ("TRANSFORMERS_OFFLINE",)),
    SiteEntry("device", (DEVICE_VARIABLE,), "device", "a GPU if there is one"),
    SiteEntry("threads", (THREADS_VARIABLE,), "count", "all cores but one"),
    SiteEntry("model_folders", (MODELS_VARIABLE,), "folders", "none"),
)
_BY_FILE: dict[str, str] = {}  # variable -> value that the file gave it in this process


@dataclass(frozen=True)
class SiteValue:
    """Value of a setting, and where it comes from."""

    key: str
    value: str
    source: str


def site_file() -> Path:
    """Return the path of the file: that of `FILE_VARIABLE`, or the one in the site's configuration folder."""
    import platformdirs

    named = os.environ.get(FILE_VARIABLE)
    return Path(named) if named else platformdirs.site_config_path("napari-lrmil", appauthor=False) / FILE


def apply_site_settings() -> None:
    """Let the values of the file be environment variables, unless they are set.

    Called before libraries are imported, because they read the variables as they are imported.

    Raises
    ------
    ConfigError
        If the file cannot be read, or has an unknown key or a wrong value.
    """
    file = site_file()
    for entry, text in read_site_file(file):
        if entry.set_variable is None:
            for name in entry.variables:
                os.environ[name] = _BY_FILE[name] = text


def read_site_file(file: Path) -> Iterator[tuple[SiteEntry, str]]:
    """Yield the settings in a file and their values as environment variables have them; none if there is no file.

    Raises
    ------
    ConfigError
        As `apply_site_settings` raises it.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        if os.environ.get(FILE_VARIABLE):
            raise ConfigError(f"{FILE_VARIABLE} names {file}, which does not exist; correct it, or unset it") from error
        return
    except OSError as error:
        raise ConfigError(f"{file}: the site's settings cannot be read ({error.strerror or error})") from error
    values, entries = _parse(file, content), {entry.key: entry for entry in ENTRIES}
    if unknown := [str(key) for key in values if key not in entries]:
        raise ConfigError(f"{file}: unknown key {unknown[0]}; keys are {', '.join(entries)}")
    for key, value in values.items():
        text = _variable_text(file, entries[key], value)
        if text:
            yield entries[key], text


def _parse(file: Path, content: bytes) -> dict[Any, Any]:
    from napari_lrmil.core.yaml_text import parse_yaml

    try:
        values = parse_yaml(content)
    except ValueError as error:
        raise ConfigError(f"{file}: the site's settings are not YAML ({error})") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{file}: expected keys and values, found {type(values).__name__}")
    return values or {}


def _variable_text(file: Path, entry: SiteEntry, value: Any) -> str:
    """Return a value as an environment variable has it; empty if nothing is set."""
    if value is None:
        return ""
    match entry.kind, value:
        case "switch", bool():
            return "1" if value else ""
        case "count", int() if not isinstance(value, bool) and 1 <= value <= MAX_THREADS:
            return str(value)
        case "device", str() if value in DEVICES:
            return value
        case "text", str() if value.strip():
            return value.strip()
        case (("folder" | "file"), str()) if Path(value).is_absolute():
            if entry.kind == "file" and not Path(value).is_file():
                raise ConfigError(f"{file}: {entry.key} is {value}, which is no file on this machine")
            return value
        case "folders", list() if all(isinstance(item, str) and Path(item).is_absolute() for item in value):
            return os.pathsep.join(value)
    raise ConfigError(f"{file}: {entry.key} is {value!r}; expected {_EXPECTED[entry.kind]}")


_EXPECTED = {
    "switch": "true or false",
    "count": f"a whole number from 1 to {MAX_THREADS}",
    "device": f"one of {', '.join(DEVICES)}",
    "text": "a text",
    "folder": "an absolute path of a folder",
    "file": "an absolute path of a file",
    "folders": "a list of absolute paths",
}


# ---------------------------------------------------------------- values


def default_device() -> str | None:
    """Return the device that ``auto`` stands for at this site; None if the site has none.

    Raises
    ------
    ConfigError
        If the variable names no device.
    """
    name = os.environ.get(DEVICE_VARIABLE, "").strip() or "auto"
    if name not in DEVICES:
        raise ConfigError(f"{DEVICE_VARIABLE} is {name!r}; expected {_EXPECTED['device']}")
    return None if name == "auto" else name


def most_threads() -> int | None:
    """Return the number of threads that this site allows; None if it does not say.

    Raises
    ------
    ConfigError
        If the variable is no number.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        return None
    if not (text.isdecimal() and 1 <= int(text) <= MAX_THREADS):
        raise ConfigError(f"{THREADS_VARIABLE} is {text!r}; expected {_EXPECTED['count']}")
    return int(text)


def model_folders() -> tuple[Path, ...]:
    """Return the folders of bundles that this site names."""
    return tuple(Path(text) for text in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if text.strip())


def site_values() -> Iterator[SiteValue]:
    """Yield every setting as it holds now, with its source. Passwords of proxies are left out."""
    for entry in ENTRIES:
        name = entry.set_variable
        if name is None:
            yield SiteValue(entry.key, entry.default, "default")
            continue
        is_of_file = os.environ[name] == _BY_FILE.get(name)
        yield SiteValue(entry.key, _without_password(os.environ[name]), str(site_file()) if is_of_file else name)


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", text)
