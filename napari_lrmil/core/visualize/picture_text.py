"""Text of pictures that Pillow draws: font, and lines that fit a width."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

FONT_FILE = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")  # in the folder of matplotlib
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Font = ImageFont.FreeTypeFont


@lru_cache(maxsize=32)
def load_font(text_px: int) -> Font:
    """Return DejaVu Sans from matplotlib: the same on every machine, and it has the letter µ.

    matplotlib itself is not imported. Without its font, Pillow's own is used, which lacks µ and most accents.
    """
    spec = find_spec("matplotlib")
    folders = spec.submodule_search_locations if spec is not None else None
    for file in (Path(folder, FONT_FILE) for folder in folders or ()):
        if file.is_file():
            return ImageFont.truetype(file, text_px)
    default = ImageFont.load_default(text_px)
    assert isinstance(default, Font)  # Pillow without FreeType cannot draw text of a given size
    return default


def wrap_text(font: Font, text: str, width_px: float) -> list[str]:
    """Return a text in lines of at most `width_px`. A longer word, such as a hash, is broken.

    A text that fits stays as it is. Characters that cannot be printed, such as a line break in a name, are replaced.
    """
    text = "".join(c if c.isprintable() else (" " if c.isspace() else REPLACEMENT) for c in text)
    if text and font.getlength(text) <= width_px:
        return [text]
    lines = [""]
    for word in text.split():
        line = f"{lines[-1]} {word}".strip()
        if font.getlength(line) > width_px and lines[-1]:
            lines.append("")
            line = word
        while font.getlength(line) > width_px:
            fits = next(n for n in range(len(line), 0, -1) if font.getlength(line[:n]) <= width_px or n == 1)
            lines[-1], line = line[:fits], line[fits:]
            lines.append("")
        lines[-1] = line
    return [line for line in lines if line]
