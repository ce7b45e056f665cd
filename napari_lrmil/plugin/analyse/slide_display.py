"""Display of the chosen slide: scale bar, scanner colours, label on request, and images offered as slides."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from napari.layers import Image

from napari_lrmil.plugin.qt.errors import show_errors
from napari_lrmil.plugin.viewer.layers import get_screen_slide, get_tag, lrmil_layers, recolour_slide
from napari_lrmil.plugin.viewer.opening.image_as_slide import replace_with_slide, why_not_a_slide
from napari_lrmil.plugin.viewer.opening.reader import ask_mpp_with_estimate

if TYPE_CHECKING:
    from magicgui.widgets import PushButton
    from napari.components import ViewerModel

    from napari_lrmil.plugin.session.session import Session
    from napari_lrmil.plugin.viewer.navigation.panel import NavigationSection
    from napari_lrmil.plugin.viewer.screen_pyramid import ScreenSlide

USE_IMAGE_TIP = "Analyse this image as a slide with one level; you are asked for its pixel size"


class SlideDisplay:
    """Connects the dock's display controls with the slide layers of the viewer.

    Parameters
    ----------
    viewer, session
        The viewer with the slides, and the session with the chosen one.
    navigation
        The section with the controls for colours and label.
    button
        Button that turns an image layer into a slide; hidden if there is no image layer.
    """

    def __init__(
        self, viewer: ViewerModel, session: Session, navigation: NavigationSection, button: PushButton
    ) -> None:
        self._viewer, self._session, self._navigation, self._button = viewer, session, navigation, button
        self._has_shown_scale_bar = False  # shown once only: the user may hide it afterwards

    def refresh(self) -> None:
        """Enable the controls that apply to the chosen slide, and show the button if there is an image layer."""
        screen_slide = self._screen_slide()
        if screen_slide is not None and not self._has_shown_scale_bar:
            self._viewer.canvas.overlays.scale_bar.visible = self._has_shown_scale_bar = True
        has_profile = screen_slide is not None and screen_slide.slide.icc_profile is not None
        image_names = tuple(screen_slide.slide.associated) if screen_slide is not None else ()
        self._navigation.show_slide(has_profile, image_names)
        layer = self._image_layer()
        self._button.visible = layer is not None
        if layer is not None:
            reason = why_not_a_slide(layer)
            self._button.enabled, self._button.text = not reason, f"Use {layer.name} as a slide…"
            self._button.tooltip = reason or USE_IMAGE_TIP

    def use_image(self) -> None:
        """Replace the topmost image layer by a slide with the same pixels."""
        layer = self._image_layer()
        if layer is not None:
            show_errors(
                partial(replace_with_slide, self._viewer, layer, ask_mpp_with_estimate, self._session.settings_store)
            )

    def set_true_colours(self, is_on: bool) -> None:
        """Show the chosen slide with its ICC profile applied, or with the colours of the file."""
        from napari_lrmil.core.patching.color import icc_transform

        slide = self._session.slide
        if slide is not None:
            transform = show_errors(partial(icc_transform, self._session.opened_slide)) if is_on else None
            recolour_slide(self._viewer, slide.path, transform)

    def show_labels(self) -> None:
        """Show label and macro image of the chosen slide in one window of their own."""
        from napari_lrmil.plugin.viewer.associated_images import show_associated_images

        show_associated_images(self._session.opened_slide, self._navigation)

    def _screen_slide(self) -> ScreenSlide | None:
        slide = self._session.slide
        layers = lrmil_layers(self._viewer, slide.path, role="slide") if slide is not None else []
        return get_screen_slide(layers[0]) if layers else None

    def _image_layer(self) -> Any:
        """Return the topmost image layer that is not part of a slide; None if there is none."""
        images = [layer for layer in self._viewer.layers if isinstance(layer, Image) and get_tag(layer) is None]
        return images[-1] if images else None
