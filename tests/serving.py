"""What the tests of serving share: a real run directory without a search, a Serve of their own, a load, and the server's processes."""

import hashlib
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve.handle import DeploymentHandle
from trained import make_service as make_service  # passed on to tests that serve
from trained import train_path

from benchmarks.serving.processes import process_ids as process_ids
from benchmarks.serving.processes import replica_ids
from code_ray.blocks import ExecutionMode
from code_ray.canaries import Canaries, save_canaries
from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import RequestError
from code_ray.links import Link
from code_ray.path import InferencePath, path_from_vector
from code_ray.plan import Plan, PlannedPath, path_id, save_links
from code_ray.policy import ORIGINAL
from code_ray.recipe import Recipe
from code_ray.runner import PathRunner, walk
from code_ray.service import Service
from code_ray.training import Trainer
from deployments.config import ProviderOptions
from examples.demo import free_port as free_port
from examples.load import Images as Images

LOCAL, HOST = "tiny", "host"
PLACEMENT = {LOCAL: "alpha", HOST: "beta"}
VECTORS: dict[str, tuple[int, ...]] = {
    ORIGINAL: (),
    "skip": (1, 4),
    "exit": (3,),
    "raw cross": (0, 2, 4, 5),
    "cross": (1, 2, 4, 5),
    "probe": (1, 2, 4),
}
BATCH = 16
FIXED = ProviderOptions(num_cpus=0.5, mode="float32", batch_size=BATCH, burst_s=2.0, guest_share_of_wait=1e6)
"""No choice is left to measurements, and guests may run ahead of kappa: what is computed is the same every time."""


@dataclass(frozen=True)
class Run:
    """A run directory with what lies in it, as values. Paths go by their names in the vectors that it was made of."""

    root: Path
    plan: Plan
    services: dict[str, Service]
    paths: dict[str, InferencePath]
    links: dict[str, dict[str, Link]]

    def id_of(self, name: str) -> str:
        """The id by which a request asks for a path, and an answer names it."""
        return ORIGINAL if name == ORIGINAL else path_id(self.paths[name], self.services)

    def planned(self, name: str) -> PlannedPath:
        """The plan's entry of a path."""
        return self.plan.paths[list(self.paths).index(name)]

    def logits(self, name: str, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What one process computes on a path, in float32 and batches of ``BATCH``."""
        runner = PathRunner(walk(self.paths[name], self.plan.placement), self.services, self.links[name], lambda _: ExecutionMode())
        return np.asarray(runner(self.services[self.plan.local].preprocess(images), BATCH).numpy())


def make_run(
    root: Path,
    services: dict[str, Service],
    digits: DataSet,
    kappa: float = 0.5,
    fit_samples: int = 64,
    vectors: Mapping[str, tuple[int, ...]] = VECTORS,
    placement: Mapping[str, str] = PLACEMENT,
) -> Run:
    """A run directory with one path of each kind, its links fitted by least squares, all services in their stores. Paths through
    several hosts go through them in the order of ``placement``.

    Every path claims the same accuracy: which are used is then a matter of measured times alone.
    """
    trainer = Trainer(services, LOCAL, digits, placement, lambda _: ExecutionMode(), Recipe(samples=64, fit_samples=fit_samples))
    hosts = [name for name in placement if name != LOCAL]
    then = dict.fromkeys(hosts[1:], 6)
    paths = {name: path_from_vector(vector, LOCAL, 6, hosts[0], 6, then=then) for name, vector in vectors.items()}
    links = {name: dict(train_path(trainer, path, seed=0, fit_only=True).links) for name, path in paths.items()}
    return save_run(root, services, placement, paths, links, kappa)


def save_run(
    root: Path,
    services: dict[str, Service],
    placement: Mapping[str, str],
    paths: dict[str, InferencePath],
    links: dict[str, dict[str, Link]],
    kappa: float,
    loss_points: float = 2.3,
) -> Run:
    """The run directory of a plan of ``paths``; the local service is the first of ``placement``, the others are hosts."""
    planned = []
    for name, path in paths.items():
        identifier = path_id(path, services)
        hashes = save_links(path, identifier, links[name], placement, root / "stores")
        planned.append(PlannedPath(path=str(path), id=identifier, accuracy=0.9, link_hashes=hashes))
    for name, service in services.items():
        service.save(root / "stores" / placement[name] / "services" / name)
    local, *hosts = placement
    plan = Plan(
        local=local,
        num_blocks=6,
        services={name: service.content_hash for name, service in services.items()},
        placement=dict(placement),
        kappa=dict.fromkeys(hosts, kappa),
        loss_points=loss_points,
        paths=tuple(planned),
    )
    write_plan(root, plan)
    return Run(root, plan, services, paths, links)


def with_canaries(run: Run, plan: Plan, images: Images, wrong: str | None = None) -> Plan:
    """``plan`` with canaries beside it; path ``wrong`` should answer something else than it does."""
    logits = {run.id_of(name): run.logits(name, images) for name in VECTORS if run.id_of(name) in {p.id for p in plan.paths}}
    if wrong is not None:
        logits[run.id_of(wrong)] = logits[run.id_of(wrong)][::-1].copy()
    return plan.model_copy(update={"canaries": save_canaries(Canaries(images, logits), run.root / "canaries.safetensors")})


def write_plan(root: Path, plan: Plan) -> None:
    """Put a plan into a run directory."""
    (root / "plan.json").write_text(plan.model_dump_json())


def turn(link: Path, target: Path) -> None:
    """As an operator does: ln -s, then mv -T, so that there is a plan at every moment."""
    staging = link.with_name("next")
    staging.symlink_to(target)
    staging.rename(link)


@contextmanager
def running_serve(num_cpus: int = 4, num_gpus: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """A Ray and a Serve of this process's own, without an application, on a free port; yields the URL."""
    # On a busy machine Serve's proxy takes longer to start than the 5 s after which Serve gives it up.
    with _environment(RAY_USAGE_STATS_ENABLED="0", RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60"):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            port = free_port()
            serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
            yield f"http://127.0.0.1:{port}"
            serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            # Whatever went wrong, the next test starts a Ray of its own.
            ray.shutdown()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def handle_of(deployment: str, application: str = "default") -> DeploymentHandle[Any]:
    """The handle of a running deployment."""
    return serve.get_deployment_handle(deployment, application)


@dataclass
class Load:
    """``clients`` threads send the same images again and again while the block runs; unless ``retries`` says so nothing is retried.

    ``answers`` holds (begin, end, path) of each answer, ``failures`` what went wrong.
    """

    url: str
    service: str
    images: Images
    clients: int = 3
    path: str | None = None
    retries: int = 0
    timeout_s: float = 30.0
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with Client(self.url, retries=self.retries, timeout_s=self.timeout_s) as client:
            while not self._stop.is_set():
                begin = time.monotonic()
                try:
                    path = client.predict(self.service, self.images, path=self.path).path
                except RequestError as error:
                    self.failures.append(f"{error.status}: {error}")
                else:
                    self.answers.append((begin, time.monotonic(), path))

    def since(self, moment: float) -> list[str]:
        """Paths of the answers to requests that began after ``moment``."""
        return [path for begin, _, path in list(self.answers) if begin > moment]


def eventually(check: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until ``check`` holds; fails with ``what`` did not happen."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"after {seconds:.0f} s: {what}"
        time.sleep(0.05)


def exported() -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and value of every sample of ours on this node's page for Prometheus."""
    port = ray.nodes()[0]["MetricsExportPort"]  # type: ignore[no-untyped-call]
    page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False).text
    found = defaultdict(list)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.startswith("ray_code_ray_"):
                found[sample.name.removeprefix("ray_code_ray_")].append((sample.labels, sample.value))
    return found


def replica_id(deployment: str, application: str = "default") -> int:
    """Process id of a deployment's only replica."""
    (only,) = replica_ids(deployment, application)
    return only


def peak_bytes(process: int) -> int:
    """The most memory a process has held at once."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def tree_hash(folder: Path) -> str:
    """One hash over names and contents of all files below ``folder``."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        digest.update(f"{file.relative_to(folder)}:".encode())
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def relative_difference(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Largest difference over largest magnitude."""
    assert one.shape == other.shape
    return float(np.abs(one - other).max() / np.abs(other).max())
