"""Every kind of file that people have, read as upright 8-bit RGB."""

import os

import numpy as np
import pytest
from PIL import Image

from lossmix_det.data.images import probe, read

RED = (200, 40, 60)


def save(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


def test_rgb_pixels_come_back_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read(path), pixels)
    assert probe(path).size() == (7, 5)


def test_greyscale_becomes_three_equal_channels(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (4, 3), 90))
    np.testing.assert_array_equal(read(path), np.full((3, 4, 3), 90))


@pytest.mark.parametrize("transparency", [None, 0])
def test_palette_images_are_looked_up(tmp_path, transparency):
    image = Image.new("RGB", (4, 3), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    options = {} if transparency is None else {"transparency": bytes([255] * 256)}
    path = save(tmp_path / "a.png", image, **options)
    np.testing.assert_array_equal(read(path)[0, 0], RED)


def test_transparency_is_dropped(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGBA", (4, 3), (*RED, 0)))
    np.testing.assert_array_equal(read(path)[0, 0], RED)


def test_cmyk_jpeg_is_converted(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (16, 16), RED).convert("CMYK"), quality=95)
    np.testing.assert_allclose(read(path)[8, 8], RED, atol=6)


def test_sixteen_bits_are_divided_by_257(tmp_path):
    values = np.array([[0, 257, 65535], [2570, 25700, 32896]], dtype=np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(values))
    np.testing.assert_array_equal(read(path)[..., 0], [[0, 1, 255], [10, 100, 128]])


def test_sixteen_bits_can_be_stretched_to_the_range_they_use(tmp_path):
    values = np.linspace(20000, 21000, 10000).astype(np.uint16).reshape(100, 100)
    path = save(tmp_path / "thermal.png", Image.fromarray(values))
    full, stretched = read(path), read(path, "stretch")
    assert full.max() - full.min() <= 5
    assert stretched.min() == 0
    assert stretched.max() == 255


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_orientation_turns_pixels_and_size(tmp_path, orientation, corner):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", Image.fromarray(pixels), exif=exif, quality=95)
    upright = read(path)
    assert upright.shape[:2] == ((32, 16) if orientation in (6, 8) else (16, 32))
    assert probe(path).size() == (upright.shape[1], upright.shape[0])
    assert upright[corner].mean() > 240


def test_a_truncated_image_is_an_os_error(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / "a.jpg", Image.fromarray(pixels))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(OSError, match="truncated"):
        read(path)


def test_a_truncated_png_is_an_os_error(tmp_path):
    path = save(
        tmp_path / "a.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    )
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(OSError, match=r"\w"):
        read(path)


def test_a_text_file_is_an_os_error(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("not an image")
    for reader in (read, probe):
        with pytest.raises(OSError, match="it is damaged, or no image"):
            reader(path)


def test_a_decompression_bomb_is_an_os_error(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("L", (50, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="million pixels"):
        read(path)


def test_the_size_of_a_png_is_read_without_decoding_it(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(np.zeros((64, 32), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[:60])
    assert probe(path).size() == (32, 64)


def test_png_files_turn_by_their_exif_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", Image.new("L", (30, 20)), exif=exif)
    assert probe(path).size() == (20, 30)
    assert read(path).shape[:2] == (30, 20)


@pytest.mark.parametrize(("top", "expected"), [(1.0, 255), (255.0, 255), (65535.0, 255)])
def test_float_images_are_taken_by_their_usual_range(tmp_path, top, expected):
    values = np.linspace(0, top, 20, dtype=np.float32).reshape(4, 5)
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    assert read(path).max() == expected
    assert read(path).min() == 0


@pytest.mark.parametrize("mode", ["full", "stretch"])
def test_values_that_are_no_numbers_do_not_change_the_rest(tmp_path, mode):
    values = np.linspace(0, 1, 200, dtype=np.float32).reshape(10, 20)
    whole = read(save(tmp_path / "a.tif", Image.fromarray(values)), mode)
    values[0, :3] = np.nan, np.inf, -np.inf
    holed = read(save(tmp_path / "b.tif", Image.fromarray(values)), mode)
    np.testing.assert_allclose(holed[1:].astype(int), whole[1:], atol=4)
    assert holed[0, :3, 0].tolist() == [0, 255, 0]


def test_an_image_without_any_number_is_black(tmp_path):
    path = save(tmp_path / "a.tif", Image.fromarray(np.full((4, 5), np.nan, dtype=np.float32)))
    assert not read(path).any()
    assert not read(path, "stretch").any()


def test_a_broken_chunk_is_an_os_error(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (30, 20)))
    content = bytearray(path.read_bytes())
    content[40:44] = b"\x00\x00\x00\x00"
    path.write_bytes(bytes(content))
    with pytest.raises(OSError, match=r"\w"):
        read(path)


CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
KINDS = [("tif", {}), ("tif", {"compression": "tiff_lzw"}), ("png", {}), ("webp", {"lossless": True})]


@pytest.mark.parametrize("orientation", list(CORNERS))
@pytest.mark.parametrize(("suffix", "options"), KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_kind_of_file_turns_by_every_orientation_and_back(tmp_path, suffix, options, orientation, mode):
    """Where the first pixel goes is the definition of EXIF's orientations."""
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(pixels).convert(mode), exif=exif, **options)
    upright, stored, header = read(path), read(path, exif=False), probe(path)
    assert upright[CORNERS[orientation]].tolist() == [255, 255, 255]
    assert (
        (upright.shape[1], upright.shape[0]) == header.upright == header.size() == ((12, 8), (8, 12))[orientation > 4]
    )
    np.testing.assert_array_equal(stored, pixels)
    assert header.stored == header.size(exif=False) == (12, 8)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_exif_does_not_know_is_upright(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    path = save(tmp_path / "a.jpg", Image.new("RGB", (16, 8)), exif=exif)
    assert probe(path).upright == (16, 8)
    assert read(path).shape == (8, 16, 3)


def test_what_is_no_regular_file_is_an_os_error(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path):
        for reader in (read, probe):
            with pytest.raises(OSError, match="no regular file"):
                reader(path)


def test_a_name_with_a_nul_is_an_os_error(tmp_path):
    for reader in (read, probe):
        with pytest.raises(OSError, match="null"):
            reader(tmp_path / "a\0.jpg")


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_damaged_exif_block_says_nothing_about_the_pixels(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", (30, 20)), exif=b"Exif\0\0garbage")
    assert read(path).shape == (20, 30, 3)
