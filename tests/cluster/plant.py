"""What must not be: python plant.py PROVIDER SERVICE fetches a provider's weights through Ray, once as an object, once in a message."""

from __future__ import annotations

import sys

import numpy as np
import ray
import torch

from code_ray.zoo import get_service


def whole(service: str) -> list[np.ndarray]:
    """More than Ray puts into a message."""
    return [weight.numpy() for weight in get_service(service).blocks.parameters()]


def one(service: str) -> np.ndarray:
    """Less than that; numpy knows no bfloat16."""
    return next(get_service(service).blocks[1].parameters()).bfloat16().view(torch.uint8).numpy()


if __name__ == "__main__":
    provider, service = sys.argv[1:]
    ray.init(address="auto", log_to_driver=False)
    for tell in (whole, one):
        ray.get(ray.remote(tell).options(num_cpus=0, resources={f"provider:{provider}": 0.001}).remote(service))
