"""Check of the site's settings: each value, and whether it comes from a variable, the site's file or a default."""

from __future__ import annotations

from napari_lrmil.core.doctor.check import FAILED, Check
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.site_settings import (
    FILE_VARIABLE,
    default_device,
    most_threads,
    read_site_file,
    site_file,
    site_values,
)


def check_site() -> tuple[Check, ...]:
    """Return whether the site's file can be read, and every setting with its source."""
    file = site_file()
    try:
        keys = [entry.key for entry, _ in read_site_file(file)]
        _ = default_device(), most_threads()
    except ConfigError as error:
        return (Check("site settings", str(error), FAILED, f"correct it, or set {FILE_VARIABLE} to another file"),)
    seen = f"{file} sets {', '.join(keys) or 'nothing'}" if file.exists() else f"{file} does not exist, which is fine"
    values = (Check(f"setting {value.key}", f"{value.value}; from: {value.source}") for value in site_values())
    return (Check("site settings", seen), *values, _window_device())


def _window_device() -> Check:
    """Return the device of the user's own settings, which hold in the window and above those of the site."""
    from napari_lrmil.core.user_settings import SettingsStore

    store = SettingsStore()
    device = store.load_settings().settings.device
    meaning = "as the site's `device`" if device == "auto" else "above the site's `device`"
    return Check("setting device of the window", f"{device}, {meaning}; from: {store.path}")
