"""Slides: opening, resolution, levels, tiles and their pixels."""
