import numpy as np
import pytest

from vqvae.encode import augment

IMAGES = np.random.default_rng(0).random((30, 9, 7, 1), "float32") + 0.1
ROWS = np.arange(100, 130)


def shift(image, down, right):
    """Shift an image by a loop over its pixels."""
    shifted = np.zeros_like(image)
    for row in range(image.shape[0]):
        for col in range(image.shape[1]):
            if 0 <= row + down < image.shape[0] and 0 <= col + right < image.shape[1]:
                shifted[row + down, col + right] = image[row, col]
    return shifted


@pytest.mark.parametrize("variant", [2, 3, 4])
@pytest.mark.parametrize("max_shift", [(1, 2), (3, 0), (12, 8)])
def test_variants_are_shifted_by_whole_pixels_and_padded_with_zeros(variant, max_shift):
    """Brute force: one of the shifts up to `max_shift` gives the augmented slice."""
    originals = IMAGES[:, ::-1] if variant % 2 else IMAGES
    shifts = set()
    for original, image in zip(originals, augment(IMAGES, variant, ROWS, max_shift), strict=True):
        matches = [
            (down, right)
            for down in range(-max_shift[0], max_shift[0] + 1)
            for right in range(-max_shift[1], max_shift[1] + 1)
            if np.array_equal(image, shift(original, down, right))
        ]
        assert matches
        if len(matches) == 1:
            shifts.add(matches[0])
    for axis, limit in enumerate(max_shift):
        along_axis = {match[axis] for match in shifts}
        assert not limit or min(along_axis) < 0 < max(along_axis)
        assert max(max_shift) >= 4 or limit in map(abs, along_axis)


def test_first_variant_is_flipped():
    flipped = augment(IMAGES, 1, ROWS, (3, 3))
    np.testing.assert_array_equal(flipped, np.flip(IMAGES, axis=1))
    np.testing.assert_array_equal(augment(flipped, 1, ROWS, (3, 3)), IMAGES)
    np.testing.assert_array_equal(augment(IMAGES, 0, ROWS, (3, 3)), IMAGES)


def test_augmented_images_are_copies_of_the_same_dtype():
    for dtype in ("float32", "uint8"):
        images = (255 * IMAGES).astype(dtype)
        before = images.copy()
        for variant in range(4):
            augmented = augment(images, variant, ROWS, (2, 2))
            assert (augmented.dtype, augmented.shape) == (images.dtype, images.shape)
            augmented[:] = 0
            np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("variant", [1, 2, 3])
def test_augmentation_depends_on_row_and_variant_only(variant):
    whole = augment(IMAGES, variant, ROWS, (3, 2))
    np.testing.assert_array_equal(augment(IMAGES, variant, ROWS, (3, 2)), whole)
    for part in (slice(4, 5), slice(7, 30, 3), slice(None, None, -1)):
        np.testing.assert_array_equal(
            augment(IMAGES[part], variant, ROWS[part], (3, 2)), whole[part]
        )
    if variant > 1:
        assert (augment(IMAGES, variant, ROWS + 1, (3, 2)) != whole).any()
        assert (augment(IMAGES, variant + 2, ROWS, (3, 2)) != whole).any()
