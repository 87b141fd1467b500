"""Pictures as people have them: what becomes of one, and files that are none."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from code_ray.errors import RequestError
from code_ray.pictures import decode_picture

RNG = np.random.default_rng(0)
GREY: npt.NDArray[np.uint8] = RNG.integers(0, 256, (28, 28), dtype=np.uint8)
COLOURS: npt.NDArray[np.uint8] = RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8)


def file_of(pixels: npt.NDArray[np.uint8], kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_picture_of_the_services_own_size_comes_through_to_the_pixel() -> None:
    assert np.array_equal(decode_picture(file_of(GREY), (28, 28)), GREY[None])
    assert np.array_equal(decode_picture(file_of(COLOURS), (32, 40, 3)), COLOURS[None])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (64, 48, 3)])
def test_any_picture_gets_the_services_shape(kind: str, shape: tuple[int, ...]) -> None:
    found = decode_picture(file_of(COLOURS, kind), shape)
    assert found.shape == (1, *shape)
    assert found.dtype == np.uint8


def test_a_wide_picture_is_cut_about_its_middle_and_not_squeezed() -> None:
    wide = np.zeros((28, 84), np.uint8)
    wide[:, 28:56] = GREY
    assert np.array_equal(decode_picture(file_of(wide), (28, 28))[0], GREY)


def test_a_photograph_is_turned_as_its_camera_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert np.array_equal(decode_picture(file_of(GREY, exif=exif), (28, 28))[0], GREY[::-1, ::-1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_is_read(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY).convert(mode).save(buffer, "PNG")
    assert decode_picture(buffer.getvalue(), (28, 28)).shape == (1, 28, 28)


GIF = io.BytesIO()
Image.fromarray(GREY).save(GIF, "GIF")


@pytest.mark.parametrize(
    "body",
    [b"", b"no picture", b"<svg/>", GIF.getvalue(), file_of(GREY)[:-40], file_of(GREY)[:20], file_of(COLOURS, "JPEG")[:300]],
    ids=["nothing", "text", "svg", "gif", "cut png", "start of a png", "cut jpeg"],
)
def test_what_is_no_whole_picture_is_the_clients_400(body: bytes) -> None:
    with pytest.raises(RequestError, match="is no PNG or JPEG file that can be read") as caught:
        decode_picture(body, (28, 28))
    assert caught.value.status == 400


def claiming(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_a_small_file_that_unpacks_to_gigabytes_is_not_unpacked(side: int) -> None:
    with pytest.raises(RequestError) as caught:
        decode_picture(claiming(side, side), (28, 28))
    assert caught.value.status in (400, 413)


@pytest.mark.parametrize("shape", [(784,), (28, 28, 1), (2, 28, 28, 3)])
def test_a_service_that_takes_no_pictures_says_so(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="no pictures; send a tensor") as caught:
        decode_picture(file_of(GREY), shape)
    assert caught.value.status == 422


@settings(max_examples=300)
@given(st.sampled_from(["PNG", "JPEG"]), st.data())
def test_a_damaged_file_is_read_or_the_clients_400(kind: str, data: st.DataObject) -> None:
    body = bytearray(file_of(GREY, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    status = 200
    try:
        decode_picture(bytes(body), (28, 28))
    except RequestError as error:
        status = error.status
    assert status in (200, 400, 413)
