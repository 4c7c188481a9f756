import io
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from kdsearch.data import pixels as rules
from kdsearch.data.pixels import UnreadableError, strict_pillow


def decode(content, *, size, channels, fit="crop", limit=64.0):
    """Return the pixels alone."""
    return rules.decode(content, size=size, channels=channels, fit=fit, max_megapixels=limit)[0]


def dimensions(content, limit=64.0):
    return rules.dimensions(content, max_megapixels=limit)


@pytest.fixture(autouse=True)
def _strict():
    with strict_pillow():
        yield


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: Pillow cannot write every kind that it reads."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def ramp(mode: str = "RGB") -> Image.Image:
    values = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_colour_keeps_every_pixel(kind):
    expected = np.asarray(ramp()).transpose(2, 0, 1)
    assert np.array_equal(decode(encoded(ramp(), kind), size=4, channels=3), expected)


def test_lossless_webp_keeps_every_pixel():
    data = encoded(ramp(), "WEBP", lossless=True)
    expected = np.asarray(ramp()).transpose(2, 0, 1)
    assert np.array_equal(decode(data, size=4, channels=3), expected)


def test_jpeg_is_near_the_colour_it_was_made_of():
    data = encoded(Image.new("RGB", (16, 16), (200, 30, 90)), "JPEG", quality=95)
    pixels = decode(data, size=16, channels=3)
    assert np.abs(pixels[:, 8, 8].astype(int) - (200, 30, 90)).max() <= 3


def test_grey_becomes_three_equal_channels():
    pixels = decode(encoded(ramp("L"), "PNG"), size=4, channels=3)
    assert np.array_equal(pixels, np.broadcast_to(np.asarray(ramp("L")), (3, 4, 4)))


def test_grey_stays_one_channel_on_request():
    pixels = decode(encoded(ramp("L"), "PNG"), size=4, channels=1)
    assert np.array_equal(pixels, np.asarray(ramp("L"))[None])


def test_palette_shows_its_colours_and_transparency_as_white():
    image = Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1, 1, 0])
    pixels = decode(encoded(image, "PNG", transparency=1), size=2, channels=3)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, 0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (100, 0, 50, 255), [100, 0, 50]),
        ("RGBA", (100, 0, 50, 0), [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),  # 51/255 of black on white: 255 * 0.8
        ("LA", (0, 51), [204, 204, 204]),
    ],
)
def test_transparency_is_laid_on_white(mode, colour, expected):
    data = encoded(Image.new(mode, (2, 2), colour), "PNG")
    assert decode(data, size=2, channels=3)[:, 0, 0].tolist() == expected


def test_cmyk_is_shown_as_rgb():
    # Full cyan, no black: red is taken away, green and blue stay.
    data = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    red, green, blue = decode(data, size=16, channels=3)[:, 8, 8].tolist()
    assert red <= 4
    assert min(green, blue) >= 251


def test_sixteen_bit_grey_is_scaled_not_clipped():
    # 65535 -> 255, 32896 = 128 * 257 -> 128, 385 = 1.498 * 257 -> 1, 0 -> 0
    values = np.array([[65535, 32896], [385, 0]], np.uint16)
    pixels = decode(encoded(Image.fromarray(values), "PNG"), size=2, channels=3)
    assert pixels[0].tolist() == [[255, 128], [1, 0]]


def test_sixteen_bit_colour_keeps_the_high_byte():
    rows = b"\x00" + struct.pack(">3H", 0xFFFF, 0x8000, 0x0100)
    pixels = decode(png(1, 1, 16, 2, rows), size=1, channels=3)
    assert pixels[:, 0, 0].tolist() == [255, 128, 1]


@pytest.mark.parametrize(
    "values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), -1, np.int32)]
)
def test_pixels_without_a_known_range_are_refused(values):
    data = encoded(Image.fromarray(values), "TIFF")
    with pytest.raises(UnreadableError, match="no known range"):
        decode(data, size=2, channels=3)


def test_exif_rotation_is_applied():
    # Orientation 6: the camera was turned, show it rotated by 90 degrees clockwise.
    image = Image.new("RGB", (4, 4), "black")
    image.paste("white", (0, 0, 4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(encoded(image, "PNG", exif=exif), size=4, channels=3)
    assert pixels[0].tolist() == [[0, 0, 255, 255]] * 4


def test_animation_gives_its_first_frame():
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert decode(data, size=4, channels=3)[:, 0, 0].tolist() == [255, 0, 0]


def test_centre_square_is_kept():
    image = Image.new("RGB", (12, 4), "black")
    image.paste("white", (4, 0, 8, 4))
    assert decode(encoded(image, "PNG"), size=4, channels=3).min() == 255


def test_the_share_that_a_crop_cuts_away_is_returned():
    data = encoded(Image.new("RGB", (16, 12)), "PNG")
    shares = [
        rules.decode(data, size=4, channels=3, fit=fit, max_megapixels=1)[1]
        for fit in ("crop", "pad", "squash")
    ]
    assert shares == [pytest.approx(1 - 12 / 16), 0, 0]


def test_pad_keeps_the_whole_image_between_black_margins():
    image = Image.new("RGB", (8, 4), "white")
    pixels = decode(encoded(image, "PNG"), size=8, channels=3, fit="pad")
    assert pixels[:, 2:6].min() == 255
    assert pixels[:, [0, 1, 6, 7]].max() == 0


def test_squash_keeps_the_whole_image_without_margins():
    image = Image.new("RGB", (32, 8), "white")
    image.paste("black", (0, 0, 16, 8))
    pixels = decode(encoded(image, "PNG"), size=8, channels=3, fit="squash")
    assert pixels[0, 0, :3].max() == 0
    assert pixels[0, 0, 5:].min() == 255
    assert (pixels == pixels[:1, :1]).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(1, 90), (90, 1), (1, 1)])
def test_a_line_of_pixels_has_every_shape(fit, size):
    data = encoded(Image.new("RGB", size, "white"), "PNG")
    assert decode(data, size=(6, 8), channels=3, fit=fit).shape == (3, 6, 8)


def test_the_limit_of_pixels_can_be_raised_beyond_pillows_own():
    side = 14_000  # 196 megapixels, where Pillow raises; one bit each
    row = b"\x00" * (1 + (side + 7) // 8)
    data = png(side, side, 1, 0, row * side)
    with pytest.raises(UnreadableError, match="14000 x 14000 pixels, more than --max-"):
        dimensions(data)
    assert dimensions(data, limit=200.0) == (side, side)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read():
    data = encoded(Image.new("RGB", (16, 16), (200, 30, 90)), "AVIF", quality=95)
    pixels = decode(data, size=16, channels=3)
    assert np.abs(pixels[:, 8, 8].astype(int) - (200, 30, 90)).max() <= 6


def test_shrinking_averages_instead_of_skipping():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    pixels = decode(encoded(Image.fromarray(checks.astype(np.uint8)), "PNG"), size=8, channels=1)
    assert np.abs(pixels.astype(int) - 127.5).max() <= 2


def test_large_jpeg_is_close_to_its_full_decoding():
    y, x = np.mgrid[0:512, 0:512]
    values = np.stack([x / 2, y / 2, (x + y) / 4], -1).astype(np.uint8)
    data = encoded(Image.fromarray(values), "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BILINEAR)
    pixels = decode(data, size=32, channels=3)
    assert np.abs(pixels.astype(int) - np.asarray(full).transpose(2, 0, 1)).max() <= 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"not an image at all",
        encoded(ramp().resize((64, 64)), "PNG")[:-40],
        encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    ],
    ids=["empty", "header", "text", "cut png", "cut jpeg", "postscript"],
)
def test_damaged_images_are_unreadable(data):
    with pytest.raises(UnreadableError):
        decode(data, size=8, channels=3)


def test_truncated_stays_unreadable_where_the_user_tolerates_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900]
    with strict_pillow(), pytest.raises(UnreadableError):
        decode(data, size=8, channels=3)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("side", [8001, 10_000, 20_000])
def test_bomb_is_refused_from_its_header(side):
    # One bit a pixel: 20,000 x 20,000 is 50 kB compressed and 400 MB decoded.
    engine = zlib.compressobj(9)
    row = b"\x00" * (1 + (side + 7) // 8)
    packed = b"".join(engine.compress(row) for _ in range(side)) + engine.flush()
    data = png(side, side, 1, 0, b"").replace(zlib.compress(b""), packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (dimensions, lambda content: decode(content, size=8, channels=3)):
        with pytest.raises(UnreadableError, match="pixels"):
            read(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_damaged_exif_neither_warns_nor_hides_the_pixels():
    data = encoded(
        Image.new("RGB", (8, 8), "white"), "JPEG", exif=b"Exif\x00\x00MM\x00*" + b"\xff" * 9
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with strict_pillow():
            assert decode(data, size=8, channels=3).min() >= 250


def test_dimensions_come_without_decoding():
    whole = encoded(Image.effect_noise((64, 48), 90), "JPEG")
    assert dimensions(whole[:900]) == (64, 48)
