"""What the tests share: one thread, a cache of their own, the digits, small untrained services and the zoo's own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from code_ray.data import FASHION_DIRS, DataSet, load_data
from code_ray.preprocessing import Preprocessing
from code_ray.service import Service, build_service
from code_ray.zoo import BUILDERS, ZOO, get_service

if TYPE_CHECKING:
    from serving import Run

GREY = Preprocessing(image_shape=(28, 28), channels=1, size=(28, 28), mean=(0.3,), std=(0.35,))

# The same examples every time, and no limit of milliseconds on a machine that may be busy.
settings.register_profile("code_ray", deadline=None, derandomize=True)
settings.load_profile("code_ray")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The machine's few cores belong to whatever the tests start beside themselves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted services go to a folder of this run, in this process and in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODE_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits() -> DataSet:
    """scikit-learn's digits, split."""
    return load_data("digits")


@pytest.fixture(scope="session")
def fashion() -> DataSet:
    """Fashion-MNIST, where its files are on this machine."""
    if not FASHION_DIRS[0].is_dir():
        pytest.skip(f"Fashion-MNIST is not in {FASHION_DIRS[0]}; 'make data' installs it on Debian as root")
    return load_data("fashion-mnist")


def make_tiny_service(name: str, digits: DataSet, seed: int, widths: tuple[int, int, int, int, int] = (4, 8, 12, 8, 8)) -> Service:
    """An untrained AlexNet for the digits with some 25,000 parameters: 6 blocks, hashed like any service."""
    torch.manual_seed(seed)
    blocks = BUILDERS["alexnet"](num_classes=10, widths=widths)
    return build_service(name, "alexnet", {"num_classes": 10, "widths": widths}, blocks, GREY, digits.labels, digits.train.images[:16])


@pytest.fixture(scope="session")
def tiny_service(digits: DataSet) -> Service:
    """The small service "tiny"; a test that changes one makes its own with ``make_tiny_service``."""
    return make_tiny_service("tiny", digits, seed=0)


@pytest.fixture(scope="session")
def tiny_services(tiny_service: Service, digits: DataSet) -> dict[str, Service]:
    """``tiny_service`` with two hosts of other widths, "host" and "second", by name."""
    return {
        "tiny": tiny_service,
        "host": make_tiny_service("host", digits, seed=1, widths=(6, 8, 8, 16, 8)),
        "second": make_tiny_service("second", digits, seed=2, widths=(8, 6, 10, 8, 4)),
    }


@pytest.fixture(scope="session")
def services() -> dict[str, Service]:
    """Every service of the zoo by name, with its shipped or converted weights."""
    return {name: get_service(name) for name in ZOO}


@pytest.fixture(scope="session")
def served_run(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A run directory for the services "tiny" and "host", which know the digits; nobody may change it."""
    from serving import HOST, LOCAL, make_run, make_service  # brings Ray in, which most tests do without

    services = {name: make_service(name, digits, seed) for seed, name in enumerate((LOCAL, HOST))}
    return make_run(tmp_path_factory.mktemp("served_run"), services, digits)
