"""Which models ``code_ray.split`` cuts: torchvision's classifiers, one model of each of timm's modules, encoders of transformers.

python -m benchmarks.split [--out DIR] [--only TEXT]

A row a model in ``split.csv``, as they are done; a row that is there is not done again. Models have random weights. What begins constant
(scales of 1 or 1e-6, heads of 0) gets other numbers first, so that no branch hides behind a zero. A model counts as cut where its blocks
compose to it to the bit, on two batches, and run in the execution modes that searches choose from.
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from code_ray.blocks import ExecutionMode, optimise
from code_ray.errors import CodeRayError
from code_ray.libraries import build_model
from code_ray.recording import the_logits
from code_ray.splitting import split

NUM_BLOCKS = 6
SIDES = (64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
SAMPLES = 2
LISTED = 12
"""Of a timm module, how many models, the first listed, are compared for size."""

MODES = (ExecutionMode(channels_last=True), ExecutionMode("bfloat16", channels_last=True))
NOISE = 0.05
UNFORESEEN = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError)

SMALL_TEXT = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512, "num_labels": 10}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SMALL_TEXT),
    "minilm": (
        "bert",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "num_labels": 10},
    ),
    "roberta": ("roberta", SMALL_TEXT),
    "distilbert": ("distilbert", {"dim": 128, "n_layers": 6, "n_heads": 4, "hidden_dim": 512, "num_labels": 10}),
    "vit": ("vit", SMALL_TEXT | {"image_size": 64}),
}
TOKENS = 32


@dataclass(frozen=True)
class Case:
    """A model to cut: ``family`` is what it stands for, a row of the table."""

    family: str
    model: str
    args: Mapping[str, Any] = field(default_factory=dict)
    is_text: bool = False


@dataclass(frozen=True)
class Row:
    """What became of it. ``parameters`` in millions, ``error_*`` against the model in float32, relative to its largest logit."""

    family: str
    model: str
    parameters: float = 0.0
    input: str = ""
    places: int = 0
    blocks: int = 0
    slowest_share: float = 0.0
    error_channels_last: float = 0.0
    error_bf16: float = 0.0
    seconds: float = 0.0
    failed: str = ""


def main() -> None:
    """Cut every model that is not in the table yet, then say how many could be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--only", default="", help="families whose name holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "split.csv"
    done = {row["family"] for row in csv.DictReader(file.open())} if file.exists() else set()
    for case in cases(lambda family: family not in done and options.only in family):
        row = try_case(case)
        append(file, row)
        print(f"{row.family:45} {row.model:40} {row.failed or f'{row.places} places, {row.seconds:.1f} s'}", flush=True)
    rows = list(csv.DictReader(file.open()))
    failed = [row for row in rows if row["failed"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} cut; {100 * len(failed) / max(1, len(rows)):.1f} % are not:")
    for entry in failed:
        print(f"  {entry['family']} ({entry['model']}): {entry['failed']}")


def cases(wanted: Callable[[str], bool]) -> Iterator[Case]:
    """The models of the families that are wanted."""
    import timm
    from torchvision import models

    for name in models.list_models(models):
        if wanted(f"torchvision:{name}"):
            yield Case(f"torchvision:{name}", f"torchvision:{name}", {"image_size": 8 * int(name[-2:])} if name.startswith("vit_") else {})
    for module in timm.list_modules():
        if wanted(f"timm:{module}") and timm.list_models(module=module):
            yield Case(f"timm:{module}", f"timm:{smallest(timm.list_models(module=module))}")
    for name, (kind, args) in ENCODERS.items():
        if wanted(f"transformers:{name}"):
            yield Case(f"transformers:{name}", f"transformers:{kind}", args, is_text=kind != "vit")


def smallest(names: list[str]) -> str:
    """Of the first models of a list the one with the fewest parameters; one that cannot be built without memory does not count."""
    sizes = {}
    for name in names[:LISTED]:
        try:
            with torch.device("meta"):
                sizes[name] = sum(parameter.numel() for parameter in build_model(f"timm:{name}", {}).parameters())
        except (CodeRayError, NotImplementedError):
            continue
    return min(sizes, key=lambda name: sizes[name], default=names[0])


def try_case(case: Case) -> Row:
    """Build and cut one model; a failure is a row too."""
    started = time.perf_counter()
    torch.manual_seed(0)
    try:
        return check(case, started)
    except (CodeRayError, *UNFORESEEN) as error:
        return Row(case.family, case.model, seconds=time.perf_counter() - started, failed=f"{type(error).__name__}: {error}")
    finally:
        gc.collect()


def check(case: Case, started: float) -> Row:
    """Cut one model and run its blocks in every mode.

    Raises:
        CodeRayError: where it cannot be built or cut, or its blocks do not run.
    """
    model = build_model(case.model, case.args).eval()
    disturb(model)
    example = torch.randint(0, 1000, (SAMPLES, TOKENS)) if case.is_text else images_for(model)
    found = split(model, example, NUM_BLOCKS)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    error, error_bf16 = (mode_error(model, found.blocks, example, mode) for mode in MODES)
    slowest = max(found.seconds[:-1]) / (sum(found.seconds[:-1]) / (len(found.seconds) - 1))
    shape = "x".join(map(str, example.shape[1:]))
    seconds = time.perf_counter() - started
    return Row(case.family, case.model, parameters, shape, len(found.places), len(found.blocks), slowest, error, error_bf16, seconds)


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Other numbers for all that begins constant."""
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter) * NOISE)


@torch.no_grad()
def images_for(model: nn.Module) -> Tensor:
    """The smallest images that the model takes.

    Raises:
        CodeRayError: where it takes none.
    """
    reason = ""
    for side in SIDES:
        images = torch.rand(SAMPLES, 3, side, side)
        try:
            model(images)
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            reason = str(error)
            continue
        return images
    raise CodeRayError(f"takes no images of {SIDES[0]} to {SIDES[-1]} pixels a side: {reason[:200]}")


@torch.inference_mode()
def mode_error(model: nn.Module, blocks: nn.ModuleList, example: Tensor, mode: ExecutionMode) -> float:
    """How far fast copies of the blocks are from the model, relative to its largest logit.

    Raises:
        CodeRayError: where one of them does not run in that mode.
    """
    value = example if example.is_floating_point() else example.clone()
    for number, block in enumerate(blocks, start=1):
        try:
            value = optimise(block, mode)(mode.cast(value) if value.is_floating_point() else value)
        except RuntimeError as error:
            raise CodeRayError(f"block {number} does not run in {mode}: {error}") from error
    expected = the_logits(model(example))
    return float((value.float() - expected).abs().max() / expected.abs().max())


def append(file: Path, row: Row) -> None:
    """One line more."""
    is_new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if is_new:
            writer.writerow([entry.name for entry in fields(Row)])
        values = [getattr(row, entry.name) for entry in fields(Row)]
        writer.writerow([f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())[:400] for value in values])


if __name__ == "__main__":
    main()
