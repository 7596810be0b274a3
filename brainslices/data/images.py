"""Reading grey pictures: what is plainly 8-bit grey is taken, all else refused by name."""

from pathlib import Path

import numpy as np
from PIL import Image

from brainslices.errors import InputError

__all__ = ["read_image"]


def read_image(path: str | Path) -> np.ndarray:
    """Reads an 8-bit grey picture, uint8 of shape (rows, cols).

    Taken, because the meaning is plain: grey, black and white, colour or palette of equal channels,
    opaque alpha, and 16 bits that are really 8 (none above 255, or all multiples of 257).

    Raises:
        InputError: if the file is missing, damaged, no picture, or of another kind.
    """
    try:
        with Image.open(path) as image:
            frames, mode = getattr(image, "n_frames", 1), image.mode
            deep = any(";16" in str(tile[3]) for tile in image.tile)
            if mode in ("P", "PA", "1") or image.has_transparency_data:
                image = image.convert("L" if mode == "1" else "RGBA")
            pixels = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise _unreadable(path, error) from error
    if frames > 1:
        raise InputError(f"{path} holds {frames} pictures. Save each slice in a file of its own.")
    if deep and pixels.ndim == 3:  # of which Pillow keeps the upper 8 bits only
        raise _refused(path, mode, "it has 16 bits a channel")
    return _grey(pixels, mode, path)


def _grey(pixels: np.ndarray, mode: str, path: str | Path) -> np.ndarray:
    """One channel of 8 bits, where nothing is lost by it."""
    if pixels.ndim == 3:
        if pixels.shape[2] in (2, 4):
            if mode == "CMYK" or (pixels[..., -1] != 255).any():
                raise _refused(path, mode, "it is partly transparent or made for print")
            pixels = pixels[..., :-1]
        if (pixels != pixels[..., :1]).any():
            raise _refused(path, mode, "its colours are no greys")
        pixels = pixels[..., 0]
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "iu":
        raise _refused(path, mode, "its values are no integers")
    low, high = int(pixels.min()), int(pixels.max())
    if low >= 0 and high <= 255:
        return pixels.astype(np.uint8)
    if low >= 0 and high <= 65535 and not (pixels % 257).any():
        return (pixels // 257).astype(np.uint8)
    raise _refused(path, mode, f"its values reach from {low} to {high}")


def _refused(path: str | Path, mode: str, reason: str) -> InputError:
    return InputError(
        f"{path} must be an 8-bit grey picture. Received: mode {mode}, and {reason}. Convert it "
        "with an intensity window of your choice, or leave it out."
    )


def _unreadable(path: str | Path, error: Exception) -> InputError:
    path = Path(path)
    empty = path.is_file() and path.stat().st_size == 0
    return InputError(
        f"{path} is no readable picture ({'the file is empty' if empty else error}). Fetch it "
        "again or leave it out."
    )
