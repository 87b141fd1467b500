"""PNG and JPEG files <-> the images that a service takes: for people, who have pictures and no tensors."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from code_ray.errors import RequestError

PICTURE_TYPES = ("image/png", "image/jpeg")
MAX_PIXELS = 50_000_000
"""More are not unpacked: a file of a few kilobytes may claim gigabytes."""


def decode_picture(body: bytes, image_shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The picture in a PNG or JPEG file as uint8 (1, *image_shape): turned as its camera was held, cut to the shape's proportions
    about its middle, made smaller or larger with a filter, grey where the shape has no colours.

    Raises:
        RequestError: 400 where it is no such file or a damaged one, 413 where it has too many pixels, 422 where the service takes
            no images of that kind.
    """
    if len(image_shape) not in (2, 3) or (len(image_shape) == 3 and image_shape[2] != 3):
        raise RequestError(f"this service takes arrays {[-1, *image_shape]}, no pictures; send a tensor", status=422)
    try:
        with warnings.catch_warnings():
            # Pillow's warning comes later than our own limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(body), formats=("PNG", "JPEG"))
        if picture.width * picture.height <= MAX_PIXELS:
            plain = ImageOps.exif_transpose(picture).convert("L" if len(image_shape) == 2 else "RGB")
        else:
            plain = None
    # What Pillow raises for files that are not what they say they are; SyntaxError is its word for a damaged PNG.
    except (OSError, SyntaxError, EOFError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise RequestError(f"the body is no PNG or JPEG file that can be read ({str(error)[:80]}); send it whole") from error
    if plain is None:
        raise RequestError(f"the picture has {picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are taken", status=413)
    fitted = ImageOps.fit(plain, (image_shape[1], image_shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(fitted, dtype=np.uint8)[None]
