"""code_ray: deep-learning services borrow each other's idle blocks (CoDE)."""

from code_ray.client import AsyncClient, Client, Prediction

__all__ = ["AsyncClient", "Client", "Prediction"]
