import base64
import io
import re

import numpy as np
from PIL import Image

from brainslices.visualization.html import comparison, picture_url


def test_picture_is_lossless():
    levels = np.arange(256, dtype="uint8").reshape(16, 16)
    for image in (levels, levels / 255, np.stack([levels] * 3, axis=-1)):
        data = base64.b64decode(picture_url(image).partition("base64,")[2])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)))[..., 0], levels)


def test_comparison_names_both_pictures_and_escapes_names():
    html = comparison("<a>", np.zeros((2, 2)), "b", np.ones((2, 2)))
    assert re.findall(r'src="(data:[^"]*)" alt="([^"]*)"', html) == [
        (picture_url(np.zeros((2, 2))), "&lt;a&gt;"),
        (picture_url(np.ones((2, 2))), "b"),
    ]
