"""From a plan to Serve applications."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.serve import Application

from code_ray.artifact import RunDirectory
from code_ray.errors import ConfigError, DeploymentError
from code_ray.plan import Plan
from code_ray.service import ServiceSpec
from code_ray.zoo import stored_spec
from deployments.config import AppOptions, ProviderAppOptions, ProviderOptions, RouterAppOptions, RouterOptions, RouterSettings
from deployments.provider import Provider
from deployments.router import Router
from deployments.routes import check_use, provider_deployment
from deployments.stores import check_blocks, open_plan

# Short enough that a dead replica is replaced in seconds, long enough for a busy machine.
HEALTH: dict[str, Any] = {"health_check_period_s": 2, "health_check_timeout_s": 10, "graceful_shutdown_timeout_s": 5}
# One line per request on disk is a cost that the servers' times do not show.
LOGGING = {"enable_access_log": False}
MAX_ONGOING = 512
BACKPRESSURE = {"status_code": 429, "retry_after_s": 1}


def application(options: AppOptions) -> Application:
    """Everything in one application.

    Raises:
        ArtifactError, PlanError: for a run directory that is not one.
        ServiceError: for a service of the plan that cannot be found.
        ConfigError: for options of a provider or a path that the plan does not know.
        DeploymentError: where a running cluster has too few CPUs or GPUs.
    """
    run, plan = open_plan(options.run_dir)
    names = _providers(plan)
    if unknown := set(options.providers) - set(names):
        raise ConfigError(f"'providers' names {sorted(unknown)}, which the plan does not; there are: {', '.join(names)}")
    wanted = {name: options.providers.get(name, ProviderOptions()) for name in names}
    _check_resources(wanted, options.router)
    specs = read_specs(run, plan)
    handles = {name: _provider(name, plan, specs, run, wanted[name]) for name in names}
    return _router(plan, specs, handles, options.router, {})


def provider_application(options: ProviderAppOptions) -> Application:
    """One provider alone; raises as ``application`` does."""
    run, plan = open_plan(options.run_dir)
    if options.provider not in (names := _providers(plan)):
        raise ConfigError(f"'provider' is {options.provider!r}, which the plan does not know; there are: {', '.join(names)}")
    _check_resources({options.provider: options.options}, None)
    return _provider(options.provider, plan, read_specs(run, plan), run, options.options)


def router_application(options: RouterAppOptions) -> Application:
    """The router alone, which finds the providers' applications by name; raises as ``application`` does."""
    run, plan = open_plan(options.run_dir)
    return _router(plan, read_specs(run, plan), {}, options.router, options.applications)


def read_specs(run: RunDirectory, plan: Plan) -> dict[str, ServiceSpec]:
    """The description of every service of the plan, without weights; raises as ``application`` does."""
    specs = {name: stored_spec(name, run.stores_dir / plan.placement[name]) for name in plan.services}
    check_blocks(plan, specs)
    return specs


def _providers(plan: Plan) -> list[str]:
    return list(dict.fromkeys(plan.placement[service] for service in plan.services))


def _provider(name: str, plan: Plan, specs: dict[str, ServiceSpec], run: RunDirectory, options: ProviderOptions) -> Application:
    actor: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    if options.pinned:
        actor["resources"] = _node_of(name)
    deployment = serve.deployment(
        name=provider_deployment(name),
        ray_actor_options=actor,
        max_ongoing_requests=MAX_ONGOING,
        logging_config=LOGGING,
        **HEALTH,
    )(Provider)
    return deployment.bind(name, plan, run, RunDirectory(run.root.resolve()), specs, options)


def _router(
    plan: Plan, specs: dict[str, ServiceSpec], handles: dict[str, Application], options: RouterOptions, applications: dict[str, str]
) -> Application:
    check_use(options.use, plan)
    actor: dict[str, Any] = {"num_cpus": options.num_cpus}
    if options.pinned:
        actor["resources"] = _node_of(plan.placement[plan.local])
    deployment = serve.deployment(
        name="router",
        num_replicas=options.replicas,
        ray_actor_options=actor,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_ONGOING,
        backpressure_config=BACKPRESSURE,
        user_config=RouterSettings(use=options.use, steering=options.steering, applications=applications).model_dump(mode="json"),
        logging_config=LOGGING,
        **HEALTH,
    )(Router)
    return deployment.bind(plan, specs, handles, options)


def _node_of(provider: str) -> dict[str, float]:
    """What a replica asks for that runs on a node of ``provider`` alone: a share of its resource beside which many fit."""
    resource = f"provider:{provider}"
    # What is pinned to a node that is not there would wait for it for ever.
    if ray.is_initialized() and resource not in ray.cluster_resources():  # type: ignore[no-untyped-call]
        raise DeploymentError(
            f"provider {provider!r} is pinned and no node has the resource {resource!r}; "
            f"start its node with --resources='{{\"{resource}\": 1}}' --labels='provider={provider}'"
        )
    return {resource: 0.01}


def _check_resources(providers: dict[str, ProviderOptions], router: RouterOptions | None) -> None:
    """An application that does not fit stays "deploying" without a word: find out before."""
    if not ray.is_initialized():
        return
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = sum(options.num_cpus for options in providers.values()) + (router.num_cpus * router.replicas if router else 0)
    gpus = sum(options.num_gpus for options in providers.values())
    for resource, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > there.get(resource, 0.0):
            raise DeploymentError(
                f"the deployment needs {wanted:g} {resource} and the cluster has {there.get(resource, 0.0):g}; "
                f"lower num_{resource.lower()}s of its providers, or add nodes"
            )
