"""What the dock does to slides on the screen: true colours, the label on request, a picture in place of a slide."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from napari.layers import Image

from napari_lrmil.plugin.qt.errors import show_errors
from napari_lrmil.plugin.viewer.image_as_slide import replace_with_slide, why_not_a_slide
from napari_lrmil.plugin.viewer.layers import get_screen_slide, get_tag, lrmil_layers, recolour_slide
from napari_lrmil.plugin.viewer.reader import ask_mpp_with_estimate

if TYPE_CHECKING:
    from magicgui.widgets import PushButton
    from napari.components import ViewerModel

    from napari_lrmil.plugin.session.session import Session
    from napari_lrmil.plugin.viewer.navigation_panel import NavigationSection
    from napari_lrmil.plugin.viewer.screen_pyramid import ScreenSlide

USE_IMAGE_TIP = "Analyse this picture as a slide of one level; asks how large its pixels are"


class SlideDisplay:
    """Brings dock and slides on the screen together.

    Parameters
    ----------
    viewer, session
        Where slides are, and which is chosen.
    navigation
        The part of the dock that asks for colours and labels.
    button
        Offers to take a picture for a slide; hidden where there is none.
    """

    def __init__(
        self, viewer: ViewerModel, session: Session, navigation: NavigationSection, button: PushButton
    ) -> None:
        self._viewer, self._session, self._navigation, self._button = viewer, session, navigation, button
        self._measured = False  # whether the scale bar was shown; who hides it then does not want it

    def show(self) -> None:
        """Enable what the chosen slide has, and offer a picture where there is one."""
        screen = self._screen()
        if screen is not None and not self._measured:
            self._viewer.canvas.overlays.scale_bar.visible = self._measured = True
        images = tuple(screen.slide.associated) if screen is not None else ()
        self._navigation.show_slide(screen is not None and screen.slide.icc_profile is not None, images)
        layer = self._image()
        self._button.visible = layer is not None
        if layer is not None:
            reason = why_not_a_slide(layer)
            self._button.enabled, self._button.text = not reason, f"Use {layer.name} as a slide…"
            self._button.tooltip = reason or USE_IMAGE_TIP

    def adopt_image(self) -> None:
        """Put a slide in the place of the picture."""
        layer = self._image()
        if layer is not None:
            show_errors(
                partial(replace_with_slide, self._viewer, layer, ask_mpp_with_estimate, self._session.settings_store)
            )

    def choose_colours(self, true_colours: bool) -> None:
        """Show the chosen slide in the scanner's colours, or as the file has it."""
        from napari_lrmil.core.patching.color import icc_transform

        slide = self._session.slide
        if slide is not None:
            colour = show_errors(partial(icc_transform, self._session.opened_slide)) if true_colours else None
            recolour_slide(self._viewer, slide.path, colour)

    def show_labels(self) -> None:
        """Show label and macro image of the chosen slide in windows of their own."""
        from napari_lrmil.plugin.viewer.associated_images import associated_image_names, show_associated_image

        slide = self._session.opened_slide
        for name in associated_image_names(slide):
            show_associated_image(slide, name, self._navigation)

    def _screen(self) -> ScreenSlide | None:
        chosen = self._session.slide
        layers = lrmil_layers(self._viewer, chosen.path, role="slide") if chosen is not None else []
        return get_screen_slide(layers[0]) if layers else None

    def _image(self) -> Any:
        """Return the uppermost image layer that is no slide; None where there is none."""
        found = [layer for layer in self._viewer.layers if isinstance(layer, Image) and get_tag(layer) is None]
        return found[-1] if found else None
