"""From what a request carries, images or texts, to a network's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from code_ray.blocks import NOISE_TOKENS
from code_ray.data import SampleArray
from code_ray.errors import ServiceError
from code_ray.tokenizer import get_tokenizer


class Preprocessing(BaseModel):
    """From a request's uint8 image to the network's input.

    ``image_shape`` is one image as the wire carries it: (H, W) grey or (H, W, 3) colour. Grey is repeated over
    ``channels``; another image size is resized to ``size``; then (pixel / 255 - mean) / std.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_shape: tuple[int, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """One sample as the wire carries it."""
        return self.image_shape

    def noise(self, count: int) -> SampleArray:
        """``count`` samples as requests carry them that say nothing, the same every time."""
        return np.random.default_rng(0).integers(0, 256, (count, *self.image_shape), dtype=np.uint8)

    def apply(self, images: SampleArray | Tensor) -> Tensor:
        """uint8 images (n, H, W) or (n, H, W, C), or floats of the same layout in 0..1 -> float32 (n, C, h, w)."""
        # Arrays from a file or from Ray's store are read-only, which torch warns of: they are copied on the way to float.
        pixels = images.float() if isinstance(images, Tensor) else torch.from_numpy(images.astype(np.float32))
        if images.dtype in (torch.uint8, np.uint8):
            pixels = pixels / 255
        pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
        if pixels.shape[1] == 1 and self.channels > 1:
            pixels = pixels.expand(-1, self.channels, -1, -1)
        if tuple(pixels.shape[2:]) != self.size:
            pixels = functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return ((pixels - mean) / std).contiguous()


class TextPreprocessing(BaseModel):
    """From a request's text to token ids: ``length`` of them, of a ``vocabulary`` that ships with the package (see ``tokenizer``).

    Whoever receives a request makes the ids, which are what goes on from there: int32, 0 where a text has ended.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    length: int = Field(ge=3)
    vocabulary: str

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """One sample as the wire carries it."""
        return (self.length,)

    def noise(self, count: int) -> SampleArray:
        """``count`` samples as requests carry them that say nothing, the same every time."""
        return np.random.default_rng(0).integers(1, NOISE_TOKENS, (count, self.length), dtype=np.int32)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Token ids of texts, (n, length)."""
        return get_tokenizer(self.vocabulary).encode(texts, self.length)

    def apply(self, tokens: SampleArray | Tensor) -> Tensor:
        """Token ids (n, length) as the blocks take them, int32.

        Raises:
            ServiceError: for anything else, such as images.
        """
        ids = tokens if isinstance(tokens, Tensor) else torch.from_numpy(tokens if tokens.flags.writeable else tokens.copy())
        if ids.dtype != torch.int32 or tuple(ids.shape[1:]) != (self.length,):
            raise ServiceError(f"{ids.dtype} {tuple(ids.shape)} came where int32 token ids (n, {self.length}) are taken; is it text?")
        return ids
