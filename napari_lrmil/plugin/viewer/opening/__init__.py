"""Ways into the window: the reader, drops, the File menu, and images that become slides."""
