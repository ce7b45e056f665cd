"""The model that a slide gets before the user chooses one: what was chosen for its folder before. No Qt, no napari."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.slides.phantom_mark import PHANTOM_MODEL
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.session.open_slides import SlideChoice


class UsualModels:
    """Models that the user chose, by folder of slides. They outlast the session.

    Parameters
    ----------
    settings_store
        File of the user's choices.
    """

    def __init__(self, settings_store: SettingsStore) -> None:
        self._settings_store = settings_store
        self._of_folder: dict[Path, str] = {}  # chosen in this session; an empty text means no model
        self._of_session: str | None = None  # chosen before a slide was open

    def remember(self, slide: SlideChoice | None, model: str) -> str:
        """Remember a choice for the slides of a folder, or without a slide for all slides of this session.

        Returns
        -------
        str
            Why it will be forgotten at the end of the session; empty if it will not.
        """
        if slide is None:
            self._of_session = model
            return ""
        self._of_folder[slide.path.parent] = model
        try:
            self._settings_store.remember_model(slide.path.parent, model)
        except LrmilError as error:
            return str(error)
        return ""

    def chosen_for(self, folder: Path) -> str | None:
        """Return the model that the user chose for the slides of a folder; None if he chose none for it."""
        chosen = self._of_folder.get(folder, self._of_session)
        return self._settings_store.remembered_model(folder) if chosen is None else chosen

    def model_of(self, slide: SlideChoice) -> str:
        """Return the model of a slide; empty for tissue whose folder has none, because no model knows all tissue."""
        usual = self.chosen_for(slide.path.parent)
        if usual is None:
            usual = PHANTOM_MODEL if slide.is_phantom else ""
        return usual
