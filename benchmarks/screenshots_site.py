"""Pictures of these pages for docs/how-to/docs.md: the start page, a tutorial in dark colours, and the Python API.

    make docs
    python benchmarks/screenshots_site.py site [--out docs/images]      # site-*.jpg

Needs chromium, and no screen.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from screenshots import as_jpeg

PAGE_PX = 1280, 800
DARK = "--blink-settings=preferredColorScheme=0"
SCROLLBAR_PX = 15  # chromium draws none, but leaves its room empty on pages that always have one
LOADED_MS = 5000  # of the page's own clock: its scripts choose colours and draw the navigation
PAGES = (
    ("index.html", "site-start.jpg"),
    ("tutorials/analyse.html", "site-tutorial.jpg", DARK),
    ("reference/api.html", "site-api.jpg"),
)


def main() -> None:
    """Save the three pictures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("site", type=Path, help="folder that `make docs` writes")
    p.add_argument("--out", type=Path, default=Path("docs/images"))
    args = p.parse_args()
    for page, name, *options in PAGES:
        browser_picture(args.site / page, args.out / name, PAGE_PX, *options, right_margin=SCROLLBAR_PX)


def browser_picture(page: Path, path: Path, size: tuple[int, int], *options: str, right_margin: int = 0) -> None:
    """Save the top of a page as a browser shows it.

    Parameters
    ----------
    page
        HTML file.
    path
        The picture.
    size
        Width and height in pixels.
    options
        Further options of chromium.
    right_margin
        Pixels at the right that are cut off.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as work:
        screenshot = Path(work) / "page.png"
        window = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]
        wait = f"--virtual-time-budget={LOADED_MS}"
        command = ["chromium", *window, wait, *options, f"--screenshot={screenshot}", page.absolute().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        image = Image.open(screenshot).convert("RGB")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_jpeg(image.crop((0, 0, size[0] - right_margin, size[1]))))
    print(path, flush=True)


if __name__ == "__main__":
    main()
