"""State and jobs of an analysis, without Qt and without napari."""
