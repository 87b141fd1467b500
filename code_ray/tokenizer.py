"""Text -> token ids: BERT's uncased WordPiece, in plain Python.

Ids are what text services take: every service of one vocabulary is given the same ones, so links join what the services
make of the same tokens, position by position. 0 is padding, from which masks are made.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from code_ray.errors import ServiceError

VOCABULARIES_DIR = Path(__file__).parent / "vocabularies"

BERT_UNCASED = "bert-uncased"

PADDING = 0

MAX_WORD = 100
"""Longer words are unknown, as in BERT's own tokenizer."""

TokenArray = npt.NDArray[np.int32]


class Tokenizer:
    """WordPiece over one vocabulary: ``tokens`` in the order of their ids."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._ids = {token: number for number, token in enumerate(tokens)}
        self.unknown, self._start, self._end = (self._ids[token] for token in ("[UNK]", "[CLS]", "[SEP]"))
        self.first_word = self._ids["[MASK]"] + 1  # those before are marks of the tokenizer's own
        self._pieces = lru_cache(maxsize=100_000)(self._split_word)

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, texts: Sequence[str], length: int) -> TokenArray:
        """Token ids of texts, int32 (n, length): a start token, the text's own, an end token, then padding; what is longer is cut."""
        found = np.full((len(texts), length), PADDING, np.int32)
        for row, text in zip(found, texts, strict=True):
            pieces = [piece for word in _words(text) for piece in self._pieces(word)][: length - 2]
            row[: len(pieces) + 2] = [self._start, *pieces, self._end]
        return found

    def _split_word(self, word: str) -> list[int]:
        """The longest pieces of the vocabulary that ``word`` begins with, one after another; unknown where there are none."""
        pieces, start = [], 0
        while start < len(word) <= MAX_WORD:
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self._ids), None)
            if end is None:
                return [self.unknown]
            pieces.append(self._ids[prefix + word[start:end]])
            start = end
        return pieces or [self.unknown]


@lru_cache(maxsize=4)
def get_tokenizer(vocabulary: str) -> Tokenizer:
    """The tokenizer of a vocabulary that ships with the package.

    Raises:
        ServiceError: for a name that none has.
    """
    known = {file.stem: file for file in VOCABULARIES_DIR.glob("*.txt")}
    if vocabulary not in known:
        raise ServiceError(f"vocabulary {vocabulary!r} is unknown; there are: {', '.join(sorted(known))}")
    return Tokenizer(known[vocabulary].read_text(encoding="utf-8").splitlines())


def _words(text: str) -> Iterator[str]:
    """Words and single punctuation marks, in lower case and without accents; CJK characters stand alone."""
    plain = unicodedata.normalize("NFD", "".join(_cleaned(text)).lower())
    word = ""
    for character in plain:
        if unicodedata.category(character) == "Mn":
            continue
        alone = _is_punctuation(character)
        if alone or character.isspace():
            if word:
                yield word
            word = ""
            if alone:
                yield character
        else:
            word += character
    if word:
        yield word


def _cleaned(text: str) -> Iterator[str]:
    for character in text:
        if character in "\t\n\r" or unicodedata.category(character) == "Zs":
            yield " "
        elif _is_ideograph(ord(character)):
            yield f" {character} "
        elif character not in "\0\ufffd" and not unicodedata.category(character).startswith("C"):
            yield character


def _is_punctuation(character: str) -> bool:
    """All ASCII that is neither letter, digit nor space counts, such as $ and ^, which Unicode calls symbols."""
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(character).startswith("P")


_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
"""Blocks of CJK ideographs, as BERT lists them."""


def _is_ideograph(code: int) -> bool:
    return any(first <= code <= last for first, last in _IDEOGRAPHS)
