import numpy as np
import pytest

from brainslices.data.crop import CropBox
from brainslices.errors import InputError


def test_crop_box_that_extends_beyond_the_image_is_zero_padded():
    images = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4, 1)
    box = CropBox(-1, 2, 6, 4)
    cut = box.cut(images)
    assert cut.shape == (1, 6, 4, 1)
    np.testing.assert_array_equal(cut[0, 1:4, :2, 0], images[0, :, 2:, 0])
    assert cut.sum() == images[0, :, 2:].sum()
    pasted = box.paste(cut, (3, 4))
    np.testing.assert_array_equal(pasted[:, :, 2:], images[:, :, 2:])
    assert not pasted[:, :, :2].any()
    assert not CropBox(9, 9, 2, 2).cut(images).any()


def test_paste_refuses_images_of_another_shape():
    with pytest.raises(InputError, match=r"`images`.*images.shape=\(1, 3, 2\)"):
        CropBox(0, 0, 2, 3).paste(np.zeros((1, 3, 2)), (8, 8))
