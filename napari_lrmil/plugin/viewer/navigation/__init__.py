"""Camera, minimap, measuring, rotation and places."""
