"""A run directory whose plan shares a trunk with that of ``serving.make_run``: what tests of trunks share."""

from pathlib import Path

from serving import HOST, PLACEMENT, Run, make_service, save_run
from trained import train_path

from code_ray.artifact import RunDirectory
from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.joining import trunk_links
from code_ray.path import InferencePath, Segment, original_path
from code_ray.recipe import Recipe
from code_ray.service import Service
from code_ray.training import Trainer

OTHER = "other"
LAYOUT = {OTHER: "alpha", HOST: PLACEMENT[HOST]}
RECIPE = Recipe(samples=64, fit_samples=64, steps=4, joint_steps=2, batch_size=16)


def behind_trunk(lin: int | None) -> InferencePath:
    """Of service "other": by the trunk of the path "raw cross" of ``serving.VECTORS``, and on from there to its block ``lin`` or a head."""
    begin = (Segment(OTHER, 0, 0), Segment(HOST, 1, 4))
    return InferencePath(6, begin if lin is None else (*begin, Segment(OTHER, lin, 6)))


def make_other_run(root: Path, first: Run, digits: DataSet) -> Run:
    """The original, a cross path and a probe, both trained behind the trunk of ``first``; the service is another of its local provider."""
    services: dict[str, Service] = {OTHER: make_service(OTHER, digits, 7), HOST: first.services[HOST]}
    trunks = trunk_links(RunDirectory(first.root), services[OTHER], {HOST: services[HOST]})
    trainer = Trainer(services, OTHER, digits, LAYOUT, lambda _: ExecutionMode(), RECIPE, trunks=trunks)
    paths = {"original": original_path(OTHER, 6), "cross": behind_trunk(5), "probe": behind_trunk(None)}
    links = {name: dict(train_path(trainer, path, seed=0).links) for name, path in paths.items()}
    return save_run(root, services, LAYOUT, paths, links, first.plan.kappa[HOST], loss_points=1.0)
