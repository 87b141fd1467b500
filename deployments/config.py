"""What an operator may set about a deployment, validated before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from code_ray.blocks import ExecutionMode
from deployments.worker import QueueLimits

DEFAULT_RUN_DIR = Path(__file__).parent / "default_plan"
"""The plan that ships with the package."""

Steering = Literal["load", "plan"]
ModeName = Literal["auto", "float32", "float32+channels_last", "bfloat16", "bfloat16+channels_last"]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProviderOptions(_Options):
    """One provider's server.

    ``num_cpus``, ``num_gpus``: what Ray reserves. ``threads``: what torch computes with. ``device`` auto takes a GPU where
    ``num_gpus`` is set and CUDA is there, else the CPU. ``pinned``: only on a node with the resource ``provider:<name>``.
    ``mode`` and ``batch_size`` are measured where they are not given. Guests may run ahead of kappa by ``burst_s``
    seconds of work; own work is refused where more than ``max_queue_s`` seconds of it wait. While there is own traffic guests run in
    chunks of ``guest_slice_s``, at most ``guest_share_of_wait`` of what an own request takes, and those that wait ``guest_wait_s`` behind
    own work are sent away.
    """

    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    pinned: bool = False
    mode: ModeName = "auto"
    batch_size: int | None = Field(None, ge=1, le=4096)
    burst_s: float = Field(0.5, gt=0)
    max_queue_s: float = Field(10.0, gt=0)
    guest_slice_s: float = Field(0.02, gt=0)
    guest_share_of_wait: float = Field(0.06, gt=0)
    guest_wait_s: float = Field(0.5, gt=0)

    @property
    def limits(self) -> QueueLimits:
        """Of the queue before the server."""
        return QueueLimits(self.max_queue_s, self.guest_slice_s, self.guest_share_of_wait, self.guest_wait_s)

    @property
    def execution_mode(self) -> ExecutionMode | None:
        """The mode that is asked for; None: measure which one is fastest."""
        if self.mode == "auto":
            return None
        return ExecutionMode("bfloat16" if self.mode.startswith("bfloat16") else "float32", self.mode.endswith("channels_last"))


class RouterOptions(_Options):
    """The ingress: limits of a request, deadlines, and which planned paths may be used.

    ``path_deadline_s`` bounds an attempt on a path before the original path takes the request, ``request_deadline_s`` the whole request.
    ``pinned``: only on the node of the local service's provider, as its ``pinned`` says. ``use``: ids of the planned paths that may be used
    (None: all); the original always may. ``shadow_share``: of offloaded images, those that the original answers as well, to compare.
    ``trial_s``: how long a plan with another version of a host's service is tried beside the traffic, at most, before it is followed.
    ``keys_file``: who may ask (None: this machine alone). ``steering``: move from the original path to the plan's rates as the load grows,
    or follow the plan's rates always.
    """

    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0.0, ge=0)
    pinned: bool = False
    max_request_bytes: int = Field(16 << 20, ge=1024)
    max_images: int = Field(1024, ge=1)
    path_deadline_s: float = Field(5.0, gt=0)
    request_deadline_s: float = Field(15.0, gt=0)
    use: tuple[str, ...] | None = None
    steering: Steering = "load"
    shadow_share: float = Field(0.01, ge=0, le=1)
    trial_s: float = Field(30.0, ge=0)
    keys_file: Path | None = None


class RouterSettings(_Options):
    """What can be changed under load: the router's ``user_config``.

    ``applications``: provider -> the Serve application it runs in, for providers outside the router's own application.
    """

    use: tuple[str, ...] | None = None
    steering: Steering = "load"
    applications: dict[str, str] = {}


class _RunDirOptions(_Options):
    run_dir: Path = DEFAULT_RUN_DIR

    @field_validator("run_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # Replicas run in other working directories than the one in which the path was written down.
        return value.expanduser().absolute()


class AppOptions(_RunDirOptions):
    """Arguments of ``build_app``: everything in one application. ``providers``: options by provider name."""

    providers: dict[str, ProviderOptions] = {}
    router: RouterOptions = RouterOptions()


class ProviderAppOptions(_RunDirOptions):
    """Arguments of ``build_provider``: the application of one provider."""

    provider: str
    options: ProviderOptions = ProviderOptions()


class RouterAppOptions(_RunDirOptions):
    """Arguments of ``build_router``: the application of the router; ``applications`` as in ``RouterSettings``."""

    router: RouterOptions = RouterOptions()
    applications: dict[str, str] = {}
