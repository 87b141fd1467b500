"""Blocks of services for text: what takes token ids (n, length) int32, and what takes sequences (see ``sequences``).

Nothing at a token depends on how much padding follows, nor on the other texts of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from code_ray.sequences import mean_over, pack, pooled, unpack
from code_ray.tokenizer import PADDING


class Stem(nn.Module):
    """Token ids -> a sequence: small embeddings, widened by a convolution over three tokens."""

    def __init__(self, vocabulary: int, embedding: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.dropout = nn.Dropout(0.3)
        self.convolution = Convolution(embedding, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != PADDING
        values = self.dropout(self.embedding(tokens)) * mask.unsqueeze(-1)
        return pack(self.convolution(values), mask)


class Convolution(nn.Module):
    """A convolution over ``taps`` tokens (n, length, channels), as one product of matrices, which bfloat16 on CPUs has kernels for.

    Beside the ends stand zeros; at padding too, where the input is a sequence's.
    """

    def __init__(self, channels_in: int, channels_out: int, taps: int = 3) -> None:
        super().__init__()
        self.taps = taps
        self.linear = nn.Linear(taps * channels_in, channels_out)

    def forward(self, values: Tensor) -> Tensor:
        length, side = values.shape[1], self.taps // 2
        padded = functional.pad(values, (0, 0, side, side))
        output: Tensor = self.linear(torch.cat([padded[:, tap : tap + length] for tap in range(self.taps)], -1))
        return output


class ResidualConvolutions(nn.Module):
    """x + f(x) on a sequence, f a norm of each token and two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = Convolution(width, width)
        self.second = Convolution(width, width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, sequence: Tensor) -> Tensor:
        values, mask = unpack(sequence)
        kept = mask.unsqueeze(-1)
        inner = functional.relu(self.first(self.norm(values) * kept)) * kept
        return pack(values + self.dropout(self.second(inner)), mask)


class PooledHead(nn.Module):
    """A sequence -> logits, from the mean and the maximum over its tokens."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, sequence: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(self.norm(pooled(sequence))))
        return logits


class EncoderEmbedding(nn.Module):
    """Token ids -> a sequence, as BERT begins: tokens and positions embedded (its token types are one here, and part of positions)."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return pack(self.norm(values), tokens != PADDING)


class EncoderLayer(nn.Module):
    """A layer of BERT's encoder on a sequence: attention over its tokens alone, then two linear layers, each with a norm behind it."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.Linear(width, 3 * width)  # queries, keys and values
        self.attended = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, sequence: Tensor) -> Tensor:
        values, mask = unpack(sequence)
        n, length, width = values.shape
        query, key, value = self.attention(values).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        values = self.attention_norm(values + self.attended(found.transpose(1, 2).reshape(n, length, width)))
        return pack(self.norm(values + self.outer(functional.gelu(self.inner(values)))), mask)


class MeanEmbedding(nn.Module):
    """A sequence -> the embedding of its text: the mean over its tokens, of length 1."""

    def forward(self, sequence: Tensor) -> Tensor:
        return functional.normalize(mean_over(sequence), dim=1)


def build_sentence_cnn(num_classes: int, vocabulary: int, embedding: int = 16, width: int = 288, depth: int = 4) -> nn.ModuleList:
    """``depth`` + 2 blocks: a stem, pairs of convolutions over the tokens, and a head."""
    middle = [ResidualConvolutions(width) for _ in range(depth)]
    return nn.ModuleList([Stem(vocabulary, embedding, width), *middle, PooledHead(width, num_classes)])


def build_text_encoder(vocabulary: int, length: int, width: int = 384, heads: int = 12, inner: int = 1536, depth: int = 6) -> nn.ModuleList:
    """``depth`` + 2 blocks: embeddings, BERT's encoder layers, and as the head the embedding of the text, one logit a dimension."""
    layers = [EncoderLayer(width, heads, inner) for _ in range(depth)]
    return nn.ModuleList([EncoderEmbedding(vocabulary, length, width), *layers, MeanEmbedding()])
