"""What the live arms serve: links of the page's paths, trained at the first seed, in a run directory; small networks beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.experiments.measure import Worker
from benchmarks.experiments.rivals import GATE, GATED
from code_ray.artifact import RunDirectory, write_text
from code_ray.distillation import CHANNELS
from code_ray.gating import make_gates
from code_ray.path import InferencePath
from code_ray.plan import Plan, PlannedPath, path_id, save_links
from code_ray.policy import ORIGINAL
from code_ray.training import LinkTraining

ANY_LOSS = 100.0
"""Points that a live arm may lose: it is one path at its full rate."""


@dataclass(frozen=True)
class LivePlan:
    """``uses``: the planned paths of each arm. ``networks``: by arm, the file of a small network and the confidence below which its
    answers are made again (0: never).
    """

    run_dir: Path
    uses: dict[str, tuple[str, ...]]
    networks: dict[str, tuple[Path, float]]


def make_live_plan(worker: Worker, paths: dict[str, InferencePath], out: Path, seed: int) -> LivePlan:
    """Train ``paths`` and small networks, and write a plan of them below ``out``; what was made of the same is kept."""
    run = RunDirectory(out / "plan")
    kept = out / "live_plan.json"
    asked = {"paths": {arm: str(path) for arm, path in paths.items()}, "seed": seed, "rival_samples": worker.config.rival_samples}
    asked["recipe"] = worker.config.recipe.model_dump(mode="json")
    if not kept.exists() or json.loads(kept.read_text()).get("asked") != asked:
        run.root.mkdir(parents=True, exist_ok=True)
        uses = _train_paths(worker, paths, run, seed)
        networks: dict[str, tuple[str, float]] = {}
        for channels in CHANNELS:
            file, threshold = _train_network(worker, channels, out, seed)
            networks |= {f"distilled-{channels}": (str(file), 0.0), f"distilled-{channels}{GATED}": (str(file), threshold)}
        write_text(kept, json.dumps({"asked": asked, "uses": uses, "networks": networks}, indent=1) + "\n")
    told = json.loads(kept.read_text())
    return LivePlan(
        run.root,
        {arm: tuple(ids) for arm, ids in told["uses"].items()},
        {arm: (Path(file), float(threshold)) for arm, (file, threshold) in told["networks"].items()},
    )


def _train_paths(worker: Worker, paths: dict[str, InferencePath], run: RunDirectory, seed: int) -> dict[str, tuple[str, ...]]:
    services, labels = worker.services, worker.data.validation.labels
    placement = {name: name for name in services}
    original = PlannedPath(path=str(worker.original), id=ORIGINAL, accuracy=worker.accuracy("validation"), link_hashes={})
    planned, uses = [original], dict[str, tuple[str, ...]]()
    for arm, path in paths.items():
        training = LinkTraining(worker.trainer_of(seed, 1.0), path, seed)
        training.fit()
        training.advance(worker.config.recipe.total_steps)
        logits = training.logits("validation")
        identifier = path_id(path, services)
        hashes = save_links(path, identifier, training.links, placement, run.stores_dir)
        entry: dict[str, Any] = {"accuracy": float((logits.argmax(1) == labels).mean()), "link_hashes": hashes}
        planned.append(PlannedPath(path=str(path), id=identifier, **entry))
        uses[arm] = (identifier,)
        for gate in make_gates(logits, worker.chosen["validation"], labels, [GATE / 100]):
            gated = replace(path, rerun=gate.rerun)
            entry |= {"accuracy": gate.accuracy, "links": identifier, "threshold": gate.threshold}
            planned.append(PlannedPath(path=str(gated), id=f"{identifier}-{gate.rerun:g}", **entry))
            uses[arm + GATED] = (planned[-1].id,)
    names = dict.fromkeys([worker.config.local, *(host for path in paths.values() for host in path.hosts)])
    plan = Plan(
        local=worker.config.local,
        num_blocks=worker.sample.blocks,
        services={name: services[name].content_hash for name in names},
        placement={name: name for name in names},
        kappa={name: 1.0 for name in names if name != worker.config.local},
        loss_points=ANY_LOSS,
        paths=tuple(planned),
    )
    write_text(run.plan_file, plan.model_dump_json(indent=1) + "\n")
    return uses


def _train_network(worker: Worker, channels: int, out: Path, seed: int) -> tuple[Path, float]:
    small, cut = worker.distilled(channels, seed), len(worker.data.validation)
    file = (out / f"distilled-{channels}.safetensors").resolve()
    save_file({name: tensor.contiguous() for name, tensor in small.network.state_dict().items()}, file)
    gates = make_gates(small.logits[:cut], worker.chosen["validation"], worker.data.validation.labels, [GATE / 100])
    return file, gates[0].threshold if gates else 0.0
