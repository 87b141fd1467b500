"""A model of one's own as a service: a ResNet-18 of torchvision, trained on scikit-learn's digits for a minute, ready to be searched for.

python -m examples.own_model [--out DIR] [--epochs N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

import code_ray
from code_ray.data import load_data

NAME = "digits-resnet"
BATCH_SIZE = 32
LEARNING_RATE = 4e-3


def main() -> None:
    """Train, make the service and its data, and say how to go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own_model"))
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    torch.manual_seed(0)

    # What you have: a model, images with labels, and how images become its input.
    digits = load_data("digits")
    images, labels = torch.from_numpy(digits.train.images.copy()), torch.from_numpy(digits.train.labels)
    preprocessing = code_ray.Preprocessing(image_shape=(28, 28), channels=3, size=(48, 48), mean=(0.3,) * 3, std=(0.35,) * 3)
    model = resnet18(num_classes=10)
    train(model, preprocessing.apply(images), labels, options.epochs)

    # What code_ray needs: the data in a file, and the model as a service, cut into blocks of about equal time.
    data = code_ray.make_data(NAME, digits.labels, train=(images, labels), test=(digits.test.images, digits.test.labels))
    code_ray.save_data(data, options.out / "data.safetensors")
    args = {"num_classes": 10}
    service = code_ray.make_service(NAME, model, "torchvision:resnet18", data.train.images, preprocessing, data.labels, args)
    service.save(code_ray.services_dir() / NAME)

    with torch.inference_mode():
        answers = nn.Sequential(*service.blocks)(service.preprocess(data.validation.images)).argmax(1).numpy()
    print(f"{code_ray.services_dir() / NAME}: {service.num_blocks} blocks, cut behind {', '.join(service.spec.builder_args['boundaries'])}")
    print(f"{(answers == data.validation.labels).mean():.1%} of {len(answers)} validation images are read right")
    config = options.out / "search.yaml"
    search = {"local": NAME, "data": str(options.out / "data.safetensors"), "hosts": {"efficientnet-lite0": {"kappa": 1.0}}}
    config.write_text(
        yaml.safe_dump(search | {"loss_points": 2.0, "screen": 12, "stopping": {"max_trainings": 4}, "recipe": {"samples": 800}})
    )
    print(f"next:  python -m search {config} --out {options.out / 'search'}")
    print(f"       serve run deployments:build_app run_dir={options.out / 'search'}")


def train(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """AdamW under a one-cycle schedule; leaves the model in eval mode."""
    steps = epochs * (len(labels) // BATCH_SIZE)
    if steps:
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
        for epoch in range(epochs):
            for batch in torch.randperm(len(labels))[: len(labels) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
                loss = functional.cross_entropy(model(inputs[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    model.eval()


if __name__ == "__main__":
    main()
