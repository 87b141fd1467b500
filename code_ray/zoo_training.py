"""Train the zoo's own services again: ``python -m code_ray.zoo_training [NAME ...]`` (``make zoo``).

Every service is chosen by its validation accuracy only through the fixed recipes below; the test accuracy is
printed once at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from code_ray.data import DataSet, Split, load_data
from code_ray.preprocessing import Preprocessing, TextPreprocessing
from code_ray.service import Service, build_service
from code_ray.tokenizer import BERT_UNCASED, get_tokenizer
from code_ray.zoo import BUILDERS, WEIGHTS_DIR


@dataclass(frozen=True)
class PretrainingRecipe:
    """How one service of the zoo is trained from scratch."""

    builder: str
    data: str
    epochs: int
    learning_rate: float
    mean: float
    std: float
    flip: bool
    batch_size: int = 128
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    seed: int = 0
    builder_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextRecipe:
    """How a service for text is trained from scratch. ``unknown``: so many of the tokens of a text, by chance, are made unknown."""

    builder: str
    data: str
    epochs: int
    learning_rate: float
    embedding_rate: float
    unknown: float
    batch_size: int = 64
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    seed: int = 0


RECIPES = {
    "fashion-cnn": PretrainingRecipe("fashion_cnn", "fashion-mnist", 3, 2e-3, 0.286, 0.353, flip=True, batch_size=64),
    "alexnet-fashion": PretrainingRecipe("alexnet", "fashion-mnist", 8, 1e-3, 0.286, 0.353, flip=True),
    "alexnet-digits": PretrainingRecipe(
        "alexnet", "digits", 40, 1e-3, 0.304, 0.376, flip=False, batch_size=32, builder_args={"widths": (32, 96, 192, 128, 128)}
    ),
}

TEXT_RECIPES = {"sentence-cnn": TextRecipe("sentence_cnn", "vader-sentences", 5, 1e-3, 5e-3, 0.1)}


def train_service(name: str, say: Callable[[str], None] = print) -> Service:
    """Train the zoo service called ``name`` by its recipe; shows a line an epoch."""
    if name in TEXT_RECIPES:
        return train_text_by(name, TEXT_RECIPES[name], load_data(TEXT_RECIPES[name].data), say)
    return train_by(name, RECIPES[name], load_data(RECIPES[name].data), say)


def train_by(name: str, recipe: PretrainingRecipe, data: DataSet, say: Callable[[str], None] = print) -> Service:
    """Train a service by ``recipe`` on ``data``, whose images are 28x28 and grey; shows a line an epoch."""
    torch.manual_seed(recipe.seed)
    preprocessing = Preprocessing(image_shape=(28, 28), channels=1, size=(28, 28), mean=(recipe.mean,), std=(recipe.std,))
    args = {"num_classes": len(data.labels), **recipe.builder_args}
    blocks = BUILDERS[recipe.builder](**args)
    model = nn.Sequential(*blocks).to(memory_format=torch.channels_last)
    images = preprocessing.apply(data.train.images)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def inputs_of(batch: Tensor) -> Tensor:
        return _augment(images[batch], recipe.flip).contiguous(memory_format=torch.channels_last)

    _descend(name, recipe, model, optimiser, [recipe.learning_rate], inputs_of, preprocessing, data, say)
    return _built(name, recipe.builder, args, blocks, preprocessing, data, say)


def train_text_by(name: str, recipe: TextRecipe, data: DataSet, say: Callable[[str], None] = print) -> Service:
    """Train a service for text by ``recipe`` on ``data``, whose samples are token ids; shows a line an epoch."""
    torch.manual_seed(recipe.seed)
    tokenizer = get_tokenizer(BERT_UNCASED)
    preprocessing = TextPreprocessing(length=data.train.images.shape[1], vocabulary=BERT_UNCASED)
    args = {"num_classes": len(data.labels), "vocabulary": len(tokenizer)}
    blocks = BUILDERS[recipe.builder](**args)
    model = nn.Sequential(*blocks)
    embedding = next(module for module in blocks.modules() if isinstance(module, nn.Embedding)).weight
    nn.init.normal_(embedding, std=0.3)
    # A token comes by rarely, so what it is embedded as learns faster, and does not decay meanwhile.
    others = [parameter for parameter in model.parameters() if parameter is not embedding]
    groups = [{"params": others, "lr": recipe.learning_rate}, {"params": [embedding], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.embedding_rate, weight_decay=recipe.weight_decay)
    tokens = preprocessing.apply(data.train.images)

    def inputs_of(batch: Tensor) -> Tensor:
        dropped = (torch.rand(len(batch), tokens.shape[1]) < recipe.unknown) & (tokens[batch] >= tokenizer.first_word)
        return tokens[batch].masked_fill(dropped, tokenizer.unknown)

    _descend(name, recipe, model, optimiser, [recipe.learning_rate, recipe.embedding_rate], inputs_of, preprocessing, data, say)
    return _built(name, recipe.builder, args, blocks, preprocessing, data, say)


def _descend(
    name: str,
    recipe: PretrainingRecipe | TextRecipe,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    rates: list[float],
    inputs_of: Callable[[Tensor], Tensor],
    preprocessing: Preprocessing | TextPreprocessing,
    data: DataSet,
    say: Callable[[str], None],
) -> None:
    """All epochs of ``model``, with the largest learning rate of each of the optimiser's groups; ``inputs_of`` samples by their numbers."""
    labels = torch.from_numpy(data.train.labels)
    steps = len(labels) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=recipe.epochs * steps)
    for epoch in range(recipe.epochs):
        started = time.monotonic()
        model.train()
        order = torch.randperm(len(labels))
        for batch in order[: steps * recipe.batch_size].split(recipe.batch_size):
            inputs = inputs_of(batch)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(inputs)
            loss = functional.cross_entropy(logits.float(), labels[batch], label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        accuracy = _accuracy(model, preprocessing, data.validation)
        say(f"{name} epoch {epoch + 1}/{recipe.epochs}: validation {accuracy:.4f}, {time.monotonic() - started:.0f} s")


def _built(
    name: str,
    builder: str,
    args: dict[str, Any],
    blocks: nn.ModuleList,
    preprocessing: Preprocessing | TextPreprocessing,
    data: DataSet,
    say: Callable[[str], None],
) -> Service:
    """The service of trained ``blocks``; says what it does on test data."""
    service = build_service(name, builder, args, blocks, preprocessing, data.labels, data.train.images[:64])
    say(f"{name}: test {_accuracy(nn.Sequential(*service.blocks), preprocessing, data.test):.4f}")
    return service


def _augment(images: Tensor, flip: bool) -> Tensor:
    """Shift each image by up to two pixels and, where that keeps the class, mirror half of them."""
    shifts = torch.randint(0, 5, (2,)).tolist()
    moved = functional.pad(images, (2, 2, 2, 2), value=float(images.min()))[..., shifts[0] : shifts[0] + 28, shifts[1] : shifts[1] + 28]
    if not flip:
        return moved
    mirror = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(mirror, moved.flip(-1), moved)


@torch.inference_mode()
def _accuracy(model: nn.Module, preprocessing: Preprocessing | TextPreprocessing, split: Split) -> float:
    model.eval()
    hits = 0
    for rows in np.array_split(np.arange(len(split)), 20):
        hits += int((model(preprocessing.apply(split.images[rows])).argmax(1).numpy() == split.labels[rows]).sum())
    return hits / len(split)


def main(names: list[str]) -> None:
    """Train the named services, all of the zoo's own by default, and write them into the package."""
    for name in names or (*RECIPES, *TEXT_RECIPES):
        train_service(name).save(WEIGHTS_DIR / name)


if __name__ == "__main__":
    main(sys.argv[1:])
