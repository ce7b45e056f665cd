"""Slides and attention in the napari viewer: reader, layers, navigation."""
