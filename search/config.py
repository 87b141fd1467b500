"""The YAML that ``python -m search`` takes, validated before any work starts."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from code_ray.distillation import EPOCHS
from code_ray.errors import ConfigError
from code_ray.gating import RERUN_SHARES
from code_ray.path import Kind
from code_ray.recipe import Recipe
from code_ray.runner import Payload
from code_ray.zoo import description_file

_PROVIDER_NAME = re.compile(r"\w[\w.-]*")

SPLIT = "('trust: split', which is so unless said otherwise where 'providers' names several owners)"


class HostConfig(BaseModel):
    """A service that lends blocks: the share of its server on offer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kappa: float = Field(1.0, gt=0, le=1)


class StoppingConfig(BaseModel):
    """DESIGN 2.5: c_stop, epsilon (units of the objective) and the most full trainings the sampler may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_trainings: int = Field(16, ge=1)
    c_stop: int = Field(6, ge=1)
    epsilon: float = Field(0.01, ge=0)


class RefineConfig(BaseModel):
    """Longer trainings of the paths that plans are made of: of so many paths at most, so many ``times`` as long as the recipe says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: int = Field(0, ge=0)
    times: int = Field(3, ge=2)


class RewardConfig(BaseModel):
    """Parameters of the paper's reward; ``accuracy_min_below_original`` is A_0 - A_min in points."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steepness: float = Field(8.0, gt=0)
    accuracy_min_below_original: float = 0.7
    exponent: float = 1.0


class SearchConfig(BaseModel):
    """One path search for one local service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    local: str
    data: str
    hosts: dict[str, HostConfig] = Field(min_length=0)
    providers: dict[str, str] = {}
    bandwidth_mbit_per_s: dict[str, dict[str, Annotated[float, Field(gt=0)]]] = {}
    trust: Literal["split", "shared"] = "shared"
    payload: Payload | None = None
    kinds: tuple[Kind, ...] = ("cross", "skip", "exit", "probe")
    min_lout: int = Field(0, ge=0)
    hosts_per_path: int = Field(1, ge=1)
    ranks: tuple[int | None, ...] = (None,)
    vectors: tuple[tuple[int, ...], ...] | None = None
    trunk: str | None = None
    objective: Literal["plan", "paper"] = "plan"
    loss_points: float = Field(2.3, ge=0)
    reward: RewardConfig = RewardConfig()
    sampler: Literal["gp", "ridge", "constant", "random", "printed"] = "gp"
    screen: int = Field(24, ge=0)
    max_candidates: int = Field(4000, ge=100)
    rungs: tuple[int, ...] = ()
    rerun_shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = RERUN_SHARES
    reduction: int = Field(2, ge=2)
    stopping: StoppingConfig = StoppingConfig()
    rivals: int = Field(2, ge=0)
    refine: RefineConfig = RefineConfig()
    confirm: int = Field(3, ge=0)
    distilled_epochs: int = Field(EPOCHS, ge=0)
    validation_samples: int = Field(sys.maxsize, ge=2)
    test_samples: int = Field(sys.maxsize, ge=1)
    controls: bool = True
    recipe: Recipe = Recipe()
    concurrency: int = Field(2, ge=1)
    gpus_per_trial: float = Field(0.0, ge=0)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _keep_owners_apart(cls, content: Any) -> Any:
        """Whoever says in ``providers`` that services have several owners leaves weights with them, unless ``trust`` says otherwise."""
        if not isinstance(content, dict) or "trust" in content:
            return content
        providers, hosts, local = content.get("providers"), content.get("hosts"), content.get("local")
        if not (isinstance(providers, dict) and providers and isinstance(hosts, dict) and isinstance(local, str)):
            return content
        owner, *others = (providers.get(name, Path(str(name)).name) for name in (local, *hosts))
        return content if all(other == owner for other in others) else {**content, "trust": "split"}

    @model_validator(mode="after")
    def _check(self) -> SearchConfig:
        if self.local in self.hosts:
            raise ValueError(f"{self.local!r} cannot be its own host; take it out of 'hosts'")
        if unknown := set(self.providers) - {self.local, *self.hosts}:
            raise ValueError(f"'providers' names {sorted(unknown)}, which is neither the local service nor a host")
        if self.hosts_per_path > max(1, len(self.hosts)):
            raise ValueError(f"'hosts_per_path' is {self.hosts_per_path} and 'hosts' names {len(self.hosts)}; lower it or name more")
        kappas: dict[str, float] = {}
        for name, host in self.hosts.items():
            if kappas.setdefault(self.placement[name], host.kappa) != host.kappa:
                raise ValueError(f"the hosts at provider {self.placement[name]!r} share one server; give them the same kappa")
        if "original" in self.kinds:
            raise ValueError("'kinds' cannot hold 'original': it is always a part of the plan")
        if list(self.rungs) != sorted({*self.rungs}) or any(not 0 < rung < self.recipe.total_steps for rung in self.rungs):
            raise ValueError(f"'rungs' {list(self.rungs)} must rise, between the first and the last of {self.recipe.total_steps} steps")
        if wrong := [name for name in self.placement.values() if not _PROVIDER_NAME.fullmatch(name)]:
            raise ValueError(f"provider {wrong[0]!r} cannot name a folder; use letters, digits, '.', '_' and '-' in 'providers'")
        ends = {name for sender, to in self.bandwidth_mbit_per_s.items() for name in (sender, *to)}
        if unknown := ends - {*self.placement.values()}:
            raise ValueError(
                f"'bandwidth_mbit_per_s' names {sorted(unknown)}; the providers are {', '.join(sorted({*self.placement.values()}))}"
            )
        if within := [sender for sender, to in self.bandwidth_mbit_per_s.items() if sender in to]:
            raise ValueError(f"'bandwidth_mbit_per_s' leads from provider {within[0]!r} to itself; take that entry out")
        by_default = Counter(provider for name, provider in self.placement.items() if name not in self.providers)
        if shared := [provider for provider, count in by_default.items() if count > 1]:
            raise ValueError(f"two service folders are called {shared[0]!r}; say in 'providers' whose each of them is")
        if self.trunk is not None and (self.vectors is not None or not self.hosts or self.min_lout > 0):
            raise ValueError(
                f"'trunk' {self.trunk!r} says which blocks of which hosts take the raw frame; give 'hosts', no 'vectors' and min_lout 0"
            )
        if self.trunk is not None and self.apart:
            raise ValueError(f"'trunk' {self.trunk!r} needs its entry links here, and hosts keep theirs {SPLIT}; set trust: shared")
        if self.apart and self.hosts_per_path > 1:
            raise ValueError(
                f"'hosts_per_path' is {self.hosts_per_path}: what goes from host to host cannot be costed where hosts keep their shapes to "
                f"themselves {SPLIT}; set hosts_per_path 1, or trust: shared"
            )
        if self.apart and not self.recipe.fit_entry and not self.recipe.joint_steps:
            raise ValueError(
                f"links into hosts start at random where these keep their weights {SPLIT}, and with recipe.joint_steps 0 they stay so; set "
                "joint_steps, or recipe.fit_entry: true where hosts may see calibration images, or trust: shared"
            )
        return self

    @property
    def bandwidth(self) -> dict[tuple[str, str], float]:
        """Bytes a second over each limited network edge, (from provider, to provider)."""
        return {(sender, to): rate * 1e6 / 8 for sender, edges in self.bandwidth_mbit_per_s.items() for to, rate in edges.items()}

    @property
    def placement(self) -> dict[str, str]:
        """Service -> provider; a service that ``providers`` does not name is its own provider, a service folder by its last part."""
        return {name: self.providers.get(name, Path(name).name) for name in (self.local, *self.hosts)}

    @property
    def apart(self) -> tuple[str, ...]:
        """Providers of hosts whose blocks and links stay with them: none where trust is shared."""
        others = dict.fromkeys(self.placement[host] for host in self.hosts if self.placement[host] != self.placement[self.local])
        return tuple(others) if self.trust == "split" else ()


def read_config(file: Path) -> SearchConfig:
    """Read and validate a search's YAML.

    Raises:
        ConfigError: naming the file, the key and the cause.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); give the path of a search configuration") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}; mend that line") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds {type(content).__name__}, not settings by name; see search/configs/ for examples")
    try:
        return SearchConfig.model_validate(_with_whole_folders(content))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (given: {_short(e['input'])})" for e in error.errors())
        raise ConfigError(f"{file}: {problems}; see search/configs/ for examples") from error


def _with_whole_folders(content: dict[str, Any]) -> dict[str, Any]:
    """Service folders and data files as absolute paths: workers run elsewhere."""

    def whole(name: Any) -> Any:
        return str(Path(name).resolve()) if isinstance(name, str) and Path(name).is_dir() and not description_file(name) else name

    named: dict[str, Any] = {
        key: {whole(name): entry for name, entry in content[key].items()}
        for key in ("hosts", "providers")
        if isinstance(content.get(key), dict)
    }
    for key in ("data", "trunk"):
        if isinstance(content.get(key), str) and Path(content[key]).exists():
            named[key] = str(Path(content[key]).resolve())
    return content | named | ({"local": whole(content["local"])} if "local" in content else {})


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
