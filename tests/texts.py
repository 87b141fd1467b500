"""What tests of services for text share: the sentences, and small untrained services for them, of six blocks each."""

from typing import Any

import torch

from code_ray.data import DataSet
from code_ray.preprocessing import TextPreprocessing
from code_ray.service import Service, build_service
from code_ray.tokenizer import BERT_UNCASED, get_tokenizer
from code_ray.zoo import BUILDERS

TEXT = TextPreprocessing(length=48, vocabulary=BERT_UNCASED)
VOCABULARY = len(get_tokenizer(BERT_UNCASED))


def make_text_services(sentences: DataSet) -> dict[str, Service]:
    """A classifier "tiny" and an encoder "host", by name."""
    cnn = {"num_classes": 2, "vocabulary": VOCABULARY, "embedding": 8, "width": 32, "depth": 4}
    encoder = {"vocabulary": VOCABULARY, "length": 48, "width": 24, "heads": 2, "inner": 48, "depth": 4}
    return {
        "tiny": _make("tiny", "sentence_cnn", cnn, sentences.labels, sentences, seed=0),
        "host": _make("host", "text_encoder", encoder, tuple(map(str, range(24))), sentences, seed=1),
    }


def _make(name: str, builder: str, args: dict[str, Any], labels: tuple[str, ...], sentences: DataSet, seed: int) -> Service:
    torch.manual_seed(seed)
    return build_service(name, builder, args, BUILDERS[builder](**args), TEXT, labels, sentences.train.images[:16])
