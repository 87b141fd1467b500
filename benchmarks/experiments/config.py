"""What the experiments are made of, as YAML."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from code_ray.errors import ConfigError
from code_ray.recipe import Recipe

CONFIGS = Path(__file__).parent / "configs"


class OtherHost(BaseModel):
    """Experiment 3: a host of another architecture, borrowed up to each of ``hout``, back before local block lin + 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    lin: int
    hout: tuple[int, ...]


class Experiments(BaseModel):
    """Which paths are trained, how, and what they are judged by: ``validation_images`` choose, ``test_images`` report.

    ``reasons``: what a reader made of the results, in Markdown, for the page.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    local: str
    hosts: tuple[str, ...]
    trained_here: tuple[str, ...] = ()
    random: str
    hout: tuple[int, ...] = ()
    lin: tuple[int, ...]
    ranks: tuple[int, ...]
    rank_lin: int
    skips: tuple[tuple[int, int], ...]
    skip_rank: int
    other: OtherHost | None = None
    exits: tuple[int, ...]
    known: str | None = None
    recipe: Recipe
    rival_samples: int = Field(12_800, ge=1)
    validation_images: int = Field(1_000, ge=1)
    test_images: int = Field(2_500, ge=1)
    seeds: tuple[int, ...] = (0, 1, 2)
    reasons: str = ""

    @property
    def services(self) -> tuple[str, ...]:
        """Names of all services, the local one first."""
        return (self.local, *self.hosts, *((self.other.host,) if self.other else ()))


def read_experiments(file: Path) -> Experiments:
    """The configuration in a YAML file.

    Raises:
        ConfigError: for a file that is not there, or is no such configuration.
    """
    try:
        return Experiments.model_validate(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{file} is no configuration of the experiments: {error}") from error
