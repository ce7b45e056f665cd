"""The napari plugin: the only folder that imports napari, qtpy and magicgui.

These come with the extra ``gui``. napari shows what is raised here when a user opens a dock.
"""

from napari_lrmil.core.extras import require_known_napari
from napari_lrmil.core.site_settings import apply_site_settings

require_known_napari()
apply_site_settings()  # before other modules import libraries that read the variables
