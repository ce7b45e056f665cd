"""LazySlide in an interpreter of its own: it writes a store of features, or loads annotations; run as a script.

    python lazyslide_child.py write SLIDE STORE
    python lazyslide_child.py load SLIDE ANNOTATIONS

Nothing of this project is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TILE_PX, MPP = 64, 0.5


def write(slide: str, store: str) -> dict[str, Any]:
    """Find tissue and tiles, extract mean and maximum of each channel as features, and write the store."""
    import lazyslide
    import torch
    import wsidata

    class ChannelStatistics(torch.nn.Module):
        def forward(self, pixels: Any) -> Any:
            values = pixels.float().flatten(1, 2)  # (B, h, w, 3) as LazySlide reads them
            return torch.cat([values.mean(dim=1), values.amax(dim=1)], dim=1)

    wsi = wsidata.open_wsi(slide, store=store)
    lazyslide.pp.find_tissues(wsi)
    lazyslide.pp.tile_tissues(wsi, TILE_PX, mpp=MPP)
    lazyslide.tl.feature_extraction(
        wsi, ChannelStatistics(), model_name="statistics", transform=None, device="cpu", pbar=False
    )
    wsi.write()
    return {"tiles": len(wsi.shapes["tiles"]), "version": lazyslide.__version__}


def load(slide: str, annotations: str) -> dict[str, Any]:
    """Load annotations, and return their columns, number and total area."""
    import lazyslide
    import wsidata

    wsi = wsidata.open_wsi(slide, store=None)
    lazyslide.pp.find_tissues(wsi)
    lazyslide.io.load_annotations(wsi, annotations, min_area=0, explode=False)
    frame = wsi.shapes["annotations"]
    column = next((name for name in frame.columns if name == "measurements"), None)
    first = None if column is None else frame[column].iloc[0]
    return {"count": len(frame), "columns": list(frame.columns), "area": float(frame.area.sum()), "first": str(first)}


if __name__ == "__main__":
    result = {"write": write, "load": load}[sys.argv[1]](sys.argv[2], str(Path(sys.argv[3])))
    sys.stdout.write(f"{json.dumps(result)}\n")
