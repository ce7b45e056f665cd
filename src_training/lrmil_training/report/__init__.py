"""Report of a run: the record of its folder, the sections, the plots and the pictures."""
