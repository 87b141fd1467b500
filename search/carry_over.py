"""Start a run directory from what another search measured: a new plan for other loads, limits or times without training again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from code_ray.artifact import RunDirectory
from code_ray.controls import with_trained_hosts
from code_ray.errors import ArtifactError
from code_ray.journal import Journal
from code_ray.path import parse_path
from code_ray.plan import Identified, read_plan
from search.config import SearchConfig, read_config

MEASURED_BY = ("local", "data", "validation_samples", "recipe", "seed", "trust", "trunk")
"""Settings that decide what an evaluation says: another search's count only where they are the same."""

TIMED_BY = ("providers", "kinds", "min_lout", "ranks", "vectors", "hosts_per_path")
"""Settings that, with the hosts, decide which times are measured."""


def check_source(source: RunDirectory, config: SearchConfig, services: Mapping[str, Identified]) -> None:
    """Make sure that what ``source`` measured counts for ``config``.

    Raises:
        ArtifactError: where it has no plan, or measured something else.
    """
    plan = read_plan(RunDirectory.open(source.root).plan_file)
    before = read_config(source.config_file)
    if changed := [name for name in MEASURED_BY if getattr(before, name) != getattr(config, name)]:
        raise ArtifactError(f"{source.root} was measured with other settings of {', '.join(changed)}; make them the same or search anew")
    for name in services:
        if plan.services.get(name, services[name].content_hash) != services[name].content_hash:
            raise ArtifactError(f"{source.root} was measured with other weights of {name!r}; search anew")
        if before.placement.get(name, config.placement[name]) != config.placement[name]:
            raise ArtifactError(f"{source.root} keeps links of {name!r} under another provider; use its 'providers' or search anew")


def carry_over(source: RunDirectory, config: SearchConfig, run: RunDirectory, num_blocks: int, say: Callable[[str], None]) -> None:
    """Copy evaluations, links and, where they cover the space, times into ``run``, unless it has evaluations already."""
    if run.journal.file.exists():
        return
    before = read_config(source.config_file)
    if source.stores_dir.exists():
        shutil.copytree(source.stores_dir, run.stores_dir, dirs_exist_ok=True)
    if set(before.hosts) == set(config.hosts) and all(getattr(before, name) == getattr(config, name) for name in TIMED_BY):
        shutil.copy(source.profile_file, run.profile_file)
    as_long = before.refine.times == config.refine.times
    records = [r for r in source.journal.records() if _is_of(r, config, num_blocks) and (as_long or r.get("fidelity") != "refined")]
    # The journal comes last and whole: until it is there, the same command starts this again.
    staged = Journal(run.journal.file.with_suffix(".staged"))
    staged.file.unlink(missing_ok=True)
    for record in records:
        # That search had ended; this one may go on.
        staged.append({name: value for name, value in record.items() if name != "stopped_because"})
    staged.file.replace(run.journal.file)
    say(f"{len(records)} evaluations taken over from {source.root}")


def _is_of(record: Mapping[str, Any], config: SearchConfig, num_blocks: int) -> bool:
    """Whether a record speaks of services that ``config`` names."""
    return set(with_trained_hosts(parse_path(record["path"], num_blocks), config.hosts).hosts) <= set(config.hosts)
