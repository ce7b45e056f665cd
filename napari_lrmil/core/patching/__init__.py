"""Tissue masks, nested HR/LR patch grids, regions of interest."""
