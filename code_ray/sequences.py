"""Sequences as one tensor: (n, length, channels + 1), of which the last channel is the mask, 1 where there is a token and 0 where there
is padding. So a mask crosses wherever the values do: over links, hops and parties, in float32 and in bfloat16, which holds both numbers.

Where there is padding every channel is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(values: Tensor, mask: Tensor) -> Tensor:
    """Values (n, length, channels) and a mask (n, length) of booleans -> a sequence; what stands at padding is lost."""
    kept = mask.unsqueeze(-1).to(values.dtype)
    return torch.cat([values * kept, kept], -1)


def unpack(sequence: Tensor) -> tuple[Tensor, Tensor]:
    """A sequence -> its values (n, length, channels) and its mask (n, length) of booleans."""
    return sequence[..., :-1], sequence[..., -1] != 0


def mean_over(sequence: Tensor) -> Tensor:
    """Mean over the tokens of each sequence, (n, channels); 0 where there are none."""
    total = sequence.sum(1)
    return total[:, :-1] / total[:, -1:].clamp(min=1)


def pooled(sequence: Tensor) -> Tensor:
    """Mean and maximum over the tokens of each sequence, (n, 2 channels)."""
    values, mask = unpack(sequence)
    most = values.masked_fill(~mask.unsqueeze(-1), torch.finfo(values.dtype).min).amax(1)
    return torch.cat([mean_over(sequence), most], -1)
