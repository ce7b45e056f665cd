"""``python -m napari_lrmil`` is ``napari-lrmil``."""

from napari_lrmil.cli import main

if __name__ == "__main__":  # processes that are started from here import this file
    main()
