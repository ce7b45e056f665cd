"""Choices and outcomes of every open slide, so that they come back together with it. No Qt, no napari."""

from __future__ import annotations

from napari_lrmil.plugin.session.choices import SlideChoices
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.run_state import NO_OUTCOME, RunOutcome, SlideAndModel


class SlideMemory:
    """Outcomes by slide and model, and the choices of the slides that are not chosen now."""

    def __init__(self) -> None:
        self._outcomes: dict[SlideAndModel, RunOutcome] = {}
        self._choices: dict[SlideChoice, SlideChoices] = {}

    def outcome(self, key: SlideAndModel | None) -> RunOutcome:
        """Return the last outcome for a slide and a model; an idle one if there is none."""
        return self._outcomes.get(key, NO_OUTCOME) if key is not None else NO_OUTCOME

    def store_outcome(self, key: SlideAndModel, outcome: RunOutcome) -> None:
        """Replace the outcome for a slide and a model."""
        self._outcomes[key] = outcome

    def store_choices(self, slide: SlideChoice, choices: SlideChoices) -> None:
        """Store the choices of a slide that the user leaves."""
        self._choices[slide] = choices

    def take_choices(self, slide: SlideChoice | None) -> SlideChoices:
        """Return the choices of a slide that is chosen again; those of a new slide are the default."""
        return self._choices.pop(slide, SlideChoices()) if slide is not None else SlideChoices()

    def move(self, old: SlideChoice, new: SlideChoice | None) -> None:
        """Move everything from a slide to its new name; None drops it, because the slide was closed."""
        for key in [key for key in self._outcomes if key[0] == old]:
            outcome = self._outcomes.pop(key)
            if new is not None:
                self._outcomes[new, key[1]] = outcome
        choices = self._choices.pop(old, None)
        if new is not None and choices is not None:
            self._choices[new] = choices
