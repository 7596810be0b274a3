"""Read greyscale images as 8 bits; refuse by name those whose grey levels would be ambiguous."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from brainslices.data.resampling import resample
from brainslices.errors import InputError
from brainslices.reading import reading
from brainslices.types import PathLike

__all__ = ["check_intensities", "fit_image", "read_image", "to_uint8"]

# Share of the pixels in the upper half of a window that may reach its upper end: bone in a window
# of the brain may, a whole head not.
MAX_SATURATED = 0.9
# Of intensities in [0, 1]: the rounding of a resampled image.
TOLERANCE = 1e-3


def check_intensities(name: str, images: np.ndarray) -> None:
    """Check that images are in [0, 1], up to rounding.

    Args:
        name: the argument, for the message.
        images: float array of any shape.

    Raises:
        InputError: if one is not, or NaN.
    """
    if images.size and not (images.min() >= -TOLERANCE and images.max() <= 1 + TOLERANCE):
        raise InputError(
            f"`{name}` must be in [0, 1]; divide 8-bit grey levels by 255. "
            f"Received: values from {images.min():g} to {images.max():g}."
        )


def read_image(path: PathLike, window: tuple[float, float] | None = None) -> np.ndarray:
    """Read a greyscale image, uint8 of shape (rows, cols), upright by its EXIF orientation.

    Without a window, accepted are greyscale, black and white, colour or palette of equal channels,
    opaque alpha, and 16 bits that hold 8 (no value above 255, or all values multiples of 257).

    Args:
        path: the image.
        window: grey levels of the file that become 0 and 255, linear between and clipped. With it,
            any bit depth of one channel is accepted, but 8 bits only if it lies within them.

    Raises:
        InputError: if the file is missing, corrupt, not an image, or an image of another kind; if
            nearly all of its bright pixels reach the window's upper end.
    """
    path = Path(path)
    with reading(path, "image", "Download it again or remove it."), Image.open(path) as file:
        frames, mode = getattr(file, "n_frames", 1), file.mode
        has_16_bits = any(";16" in str(tile[3]) for tile in file.tile)
        needs_conversion = mode in ("P", "PA", "1") or file.has_transparency_data
        target = "L" if mode == "1" else "RGBA"
        upright = ImageOps.exif_transpose(file)
        pixels = np.asarray(upright.convert(target) if needs_conversion else upright)
    if frames > 1:
        raise InputError(f"{path} holds {frames} images. Save each slice in a separate file.")
    if has_16_bits and pixels.ndim == 3:  # Pillow reads only the upper 8 bits of each channel
        raise _unsupported(path, mode, "16 bits per channel")
    grey = _one_channel(pixels, mode, path)
    if window is None:
        return _to_8_bits(grey, mode, path)
    low, high = window
    if grey.dtype == np.uint8 and high > 255:
        raise InputError(
            f"{path} has 8 bits, but the window exceeds them. Received: window={window}. "
            "Prepare the images of each bit depth separately."
        )
    scaled = (grey - float(low)) / (high - low)
    if np.count_nonzero(scaled >= 1) > MAX_SATURATED * np.count_nonzero(scaled >= 0.5):
        raise InputError(
            f"{path} would be white: nearly all of its bright pixels reach HIGH of the window. "
            f"Received: window={window}, values up to {grey.max()}. Give a --window LOW HIGH that "
            "holds the grey levels."
        )
    return to_uint8(scaled)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Round intensities in [0, 1], clipped to it, to 8 bits.

    Example:
        >>> to_uint8(np.array([-0.5, 0.5, 1.0])).tolist()
        [0, 128, 255]
    """
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image as a whole into a zero-padded frame.

    Args:
        image: uint8 of shape (rows, cols).
        size: (rows, cols) of the frame.

    Returns:
        uint8 of shape `size`; the image itself if it has that size.
    """
    if image.shape == tuple(size):
        return image
    pixel = max(side / frame for side, frame in zip(image.shape, size, strict=True))
    fitted = resample(image.astype(np.float32), (1.0, 1.0), size, pixel)
    return np.rint(np.clip(fitted, 0, 255)).astype(np.uint8)


def _one_channel(pixels: np.ndarray, mode: str, path: Path) -> np.ndarray:
    """Reduce equal channels to one of finite values."""
    if pixels.ndim == 3:
        if pixels.shape[2] in (2, 4):
            if mode == "CMYK" or (pixels[..., -1] != 255).any():
                raise _unsupported(path, mode, "transparent pixels or print colours")
            pixels = pixels[..., :-1]
        if (pixels != pixels[..., :1]).any():
            raise _unsupported(path, mode, "colours that are not grey")
        pixels = pixels[..., 0]
    if not np.isfinite(pixels).all():
        raise _unsupported(path, mode, "NaN or infinity")
    return pixels


def _to_8_bits(pixels: np.ndarray, mode: str, path: Path) -> np.ndarray:
    """Convert to 8 bits if that is lossless."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "iu":
        raise _unsupported(path, mode, "values that are not integers")
    low, high = int(pixels.min()), int(pixels.max())
    if low >= 0 and high <= 255:
        return pixels.astype(np.uint8)
    if low >= 0 and high <= 65535 and not (pixels % 257).any():
        return (pixels // 257).astype(np.uint8)
    raise _unsupported(path, mode, f"values from {low} to {high}")


def _unsupported(path: Path, mode: str, reason: str) -> InputError:
    return InputError(
        f"{path} must be an 8-bit greyscale image. Received: mode {mode} with {reason}. "
        "Convert or remove it; prepare_data.py reads grey images of more bits by --window LOW HIGH."
    )
