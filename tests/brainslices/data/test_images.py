import re

import numpy as np
import pytest
from helpers import GREY, save_image
from PIL import Image

from brainslices.data.images import fit_image, read_image
from brainslices.errors import InputError


def test_greyscale_images_are_read_unchanged(tmp_path):
    for suffix in (".png", ".bmp", ".tif"):
        np.testing.assert_array_equal(read_image(save_image(tmp_path / f"a{suffix}")), GREY)
    jpeg = read_image(save_image(tmp_path / "a.jpg"))
    assert np.abs(jpeg - GREY.astype(int)).max() <= 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_unambiguous_images_are_converted(tmp_path, mode):
    np.testing.assert_array_equal(read_image(save_image(tmp_path / "a.png", mode=mode)), GREY)


def test_two_values_become_black_and_white(tmp_path):
    image = read_image(save_image(tmp_path / "a.png", GREY > 60))
    np.testing.assert_array_equal(image, np.where(GREY > 60, 255, 0))


@pytest.mark.parametrize("factor", [1, 257])
def test_sixteen_bits_that_hold_eight_are_converted(tmp_path, factor):
    for suffix in (".png", ".tif"):
        path = save_image(tmp_path / f"a{suffix}", GREY.astype(np.uint16) * factor)
        image = read_image(path)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, GREY)


def coloured():
    pixels = np.stack([GREY] * 3, axis=-1)
    pixels[3, 4, 1] += 1
    return pixels


def transparent():
    return np.stack([GREY, np.full_like(GREY, 254)], axis=-1)


@pytest.mark.parametrize(
    ("pixels", "mode", "reason"),
    [
        (coloured(), None, "mode RGB "),
        (coloured(), "P", "mode P "),
        (transparent(), None, "mode LA "),
        (GREY.astype(np.uint16) * 100, None, "values from 0 to 11900"),
    ],
)
def test_ambiguous_images_are_refused(tmp_path, pixels, mode, reason):
    path = save_image(tmp_path / "odd.png", pixels, mode)
    with pytest.raises(InputError, match=r"odd\.png.*" + re.escape(reason)):
        read_image(path)


def test_floats_and_several_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"float\.tif.*mode F"):
        read_image(save_image(tmp_path / "float.tif", GREY.astype(np.float32)))
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"pages\.tif holds 2"):
        read_image(tmp_path / "pages.tif")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_truncated_images_are_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = save_image(tmp_path / f"cut{suffix}", noise)
    whole = path.read_bytes()
    for keep in (0, 1, 7, 30, 60, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:keep])
        reason = "the file is empty" if keep == 0 else ".+"
        with pytest.raises(InputError, match=rf"cut{suffix} is not a readable image \({reason}\)"):
            read_image(path)


def test_missing_file_and_text_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("text")
    for name in ("text.png", "absent.png"):
        with pytest.raises(InputError, match=f"{name} is not a readable image"):
            read_image(tmp_path / name)


def test_window_maps_grey_levels_of_any_depth(tmp_path):
    ramp = np.linspace(0, 4095, 120).astype(np.uint16).reshape(12, 10)
    path = tmp_path / "ct.png"
    Image.fromarray(ramp).save(path)
    expected = np.rint(np.clip((ramp - 1000.0) / 1000, 0, 1) * 255)
    np.testing.assert_array_equal(read_image(path, (1000, 2000)), expected)
    with pytest.raises(InputError, match="--window LOW HIGH"):
        read_image(path)


def test_nan_is_refused(tmp_path):
    path = tmp_path / "odd.tif"
    Image.fromarray(np.where(GREY > 50, GREY, np.nan).astype(np.float32)).save(path)
    with pytest.raises(InputError, match=r"odd\.tif .*NaN or infinity"):
        read_image(path, (0, 255))


def test_eight_bit_image_is_refused_where_the_window_is_of_a_deeper_one(tmp_path):
    path = save_image(tmp_path / "shallow.png")
    assert read_image(path, (0, 255)).max() > 100
    with pytest.raises(InputError, match=r"shallow\.png has 8 bits.*Received: window=\(0, 4095\)"):
        read_image(path, (0, 4095))


def test_window_far_below_the_grey_levels_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    head = np.where(np.arange(4096).reshape(64, 64) < 1500, rng.normal(1500, 400, (64, 64)), 20)
    path = tmp_path / "deep.png"
    Image.fromarray(head.clip(0, 4095).astype(np.uint16)).save(path)
    assert 20 < read_image(path, (0, 3000)).mean() < 100
    with pytest.raises(InputError, match=r"deep\.png would be white.*Received: window=\(0, 255\)"):
        read_image(path, (0, 255))


def test_image_is_turned_upright_by_its_exif_orientation(tmp_path):
    turned = Image.fromarray(np.rot90(GREY))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), GREY)


def test_image_is_scaled_as_a_whole_into_the_frame():
    image = np.zeros((40, 80), np.uint8)
    image[10:30, 20:60] = 200
    fitted = fit_image(image, (32, 32))
    assert (fitted.shape, fitted.dtype) == ((32, 32), np.uint8)
    rows, cols = np.nonzero(fitted > 100)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (12, 19, 8, 23)
    assert fit_image(image, (40, 80)) is image
