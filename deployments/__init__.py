"""Serving a plan on Ray Serve.

serve run deployments:app                         the plan that ships with the package
serve run deployments:build_app run_dir=DIR       a search's plan
serve deploy deployments/serve_config.yaml        one application per provider, and the router

Importing this module builds nothing: ``app`` is made when it is asked for.
"""

# No `from __future__ import annotations`: Serve looks for the builders' argument models in their signatures.
from typing import Any

from ray.serve import Application

from deployments.config import AppOptions, ProviderAppOptions, RouterAppOptions

__all__ = ["app", "build_app", "build_provider", "build_router"]


def build_app(options: AppOptions) -> Application:
    """One application with all providers of a plan and the router."""
    from deployments.builder import application

    return application(options)


def build_provider(options: ProviderAppOptions) -> Application:
    """The application of one provider."""
    from deployments.builder import provider_application

    return provider_application(options)


def build_router(options: RouterAppOptions) -> Application:
    """The application of the router, for providers that have applications of their own."""
    from deployments.builder import router_application

    return router_application(options)


def __getattr__(name: str) -> Any:
    if name == "app":
        return build_app(AppOptions())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
