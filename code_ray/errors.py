"""Every error a user can cause, in one small tree.

    CodeRayError(ValueError)
    ├── ConfigError        a configuration that cannot be used
    ├── PathError          a path, or a path's vector, outside the space
    ├── DataError          a data set that is missing or not what it claims to be
    ├── ServiceError       a service on disk, or in memory, that is incomplete
    │   ├── IntegrityError     content that is not what its hash says
    │   └── SplitError         a model that cannot be cut into blocks, or not there
    ├── LinkError          a link that cannot be built, loaded or fitted
    ├── ArtifactError      a run directory or a journal that cannot be read
    ├── PlanError          a plan that does not fit the services it names
    ├── DeploymentError    a deployment that did not come up
    └── RequestError       a request that a server refuses (carries the HTTP status)

Each message names the value, the cause and the fix. They derive from ``ValueError`` because that is
what they are: a value somebody passed in cannot be used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a client needs no pydantic
    from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """Where the first thing that pydantic complains of stands, and what is wrong with it: what our messages say of it."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


class CodeRayError(ValueError):
    """Base of every error that code_ray raises on purpose."""


class ConfigError(CodeRayError):
    """A configuration that cannot be used."""


class PathError(CodeRayError):
    """A path, or a path's vector, outside the space."""


class DataError(CodeRayError):
    """A data set that is missing or not what it claims to be."""


class ServiceError(CodeRayError):
    """A service on disk, or in memory, that is incomplete."""


class IntegrityError(ServiceError):
    """Content that is not what its hash says."""


class SplitError(ServiceError):
    """A model that cannot be cut into blocks, or not where it was asked for."""


class LinkError(CodeRayError):
    """A link that cannot be built, loaded or fitted."""


class ArtifactError(CodeRayError):
    """A run directory or a journal that cannot be read."""


class PlanError(CodeRayError):
    """A plan that does not fit the services it names."""


class DeploymentError(CodeRayError):
    """A deployment that did not come up."""


class RequestError(CodeRayError):
    """A request that a server refuses.

    ``status`` is the HTTP status of the answer; ``retry_after_s`` is set where waiting helps.
    """

    def __init__(self, message: str, *, status: int = 400, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        # Crosses process borders inside a Ray cluster; keyword-only fields need help there.
        return (_rebuild_request_error, (str(self), self.status, self.retry_after_s))


def _rebuild_request_error(message: str, status: int, retry_after_s: float | None) -> RequestError:
    return RequestError(message, status=status, retry_after_s=retry_after_s)
