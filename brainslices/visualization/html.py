"""Pictures within a page of HTML."""

import base64
import io

import matplotlib
import numpy as np
from markupsafe import Markup
from PIL import Image

from brainslices.data.images import to_uint8

__all__ = ["COMPARISON_CSS", "colour", "comparison", "picture_url"]

COMPARISON_CSS = """
.compare { position: relative; --cut: 50%; }
.compare img { display: block; width: 100%; margin: 0; background: #000; }
.compare .after { position: absolute; inset: 0; height: 100%; clip-path: inset(0 0 0 var(--cut)); }
.compare::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px;
  background: #ffd24d; pointer-events: none; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; z-index: 2; }
.compare:focus-within { outline: 3px solid #3b82f6; outline-offset: 2px; }
.side { position: absolute; bottom: 4px; left: 4px; padding: 0 5px; font-size: 0.75rem; color: #fff;
  background: #000a; border-radius: 3px; }
.side.right { left: auto; right: 4px; }
"""
COMPARISON = Markup("""<div class="compare">
<img src="{before}" alt="{left}">
<img class="after" src="{after}" alt="{right}">
<input type="range" min="0" max="100" value="50" aria-label="Percent of {left} before {right}"
 oninput="this.parentElement.style.setProperty('--cut', this.value + '%')">
<span class="side" aria-hidden="true">{left}</span>
<span class="side right" aria-hidden="true">{right}</span>
</div>""")


def colour(values: np.ndarray, colormap: str) -> np.ndarray:
    """Colour an array of values in [0, 1], clipped to it.

    Args:
        values: float array of shape (rows, cols).
        colormap: name of one of matplotlib's colour maps.

    Returns:
        uint8 array of shape (rows, cols, 3).
    """
    return matplotlib.colormaps[colormap](np.clip(values, 0, 1), bytes=True)[..., :3]


def picture_url(image: np.ndarray) -> str:
    """Encode a picture as its own lossless address.

    Args:
        image: uint8 array, or float array in [0, 1], of shape (rows, cols) or (rows, cols, 3).
    """
    pixels = image if image.dtype == np.uint8 else to_uint8(image)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def comparison(left: str, before: np.ndarray, right: str, after: np.ndarray) -> Markup:
    """Lay two pictures over each other, with a slider for mouse, touch and keyboard between them.

    The page needs `COMPARISON_CSS`.

    Args:
        left: name of the picture at the left.
        before: the picture at the left, as `picture_url` takes it.
        right: name of the picture at the right.
        after: the picture at the right, of the same shape.
    """
    urls = {"before": picture_url(before), "after": picture_url(after)}
    return COMPARISON.format(left=left, right=right, **urls)
