"""``python -m napari_lrmil`` is ``napari-lrmil``."""

from napari_lrmil.cli import main

main()
