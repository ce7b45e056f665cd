"""The napari plugin: the only folder that imports napari, qtpy and magicgui."""
