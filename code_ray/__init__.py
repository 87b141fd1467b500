"""code_ray: deep-learning services borrow each other's idle blocks (CoDE)."""

from code_ray.client import Client, Prediction

__all__ = ["Client", "Prediction"]
