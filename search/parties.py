"""Hosts as parties of their own: each worker asks a Ray actor on the host's nodes, which holds its blocks and links (DESIGN 3.3).

What crosses is what ``code_ray.party`` declares: text, numbers and numpy arrays, carried by Ray; arrays as bytes (``code_ray.packing``).
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, cast

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from code_ray.blocks import Boundary, ExecutionMode
from code_ray.data import SampleArray
from code_ray.errors import CodeRayError, ConfigError, ServiceError
from code_ray.own_party import OwnParty
from code_ray.packing import packed, unpacked
from code_ray.party import Invitation, Part, Party, PublicService, Survey
from code_ray.profiling import Profile, Times
from search.config import SearchConfig
from search.problem import load_services

LABEL = "provider"
"""Nodes of a cluster say whose they are by this label, and by a resource of the same name with the provider's behind a colon."""


def start_parties(config: SearchConfig, profile: Profile | None = None) -> dict[str, Party]:
    """A party for each provider whose hosts stay with it, by provider. Without a profile they can say what they have, and measure it.

    Raises:
        ConfigError: where nodes are labelled and none is that provider's.
    """
    return {
        provider: RemoteParty(config, provider, ExecutionMode() if profile is None else profile.mode_of(provider))
        for provider in config.apart
    }


def trial_resources(config: SearchConfig) -> dict[str, float]:
    """What Ray reserves for a trial: it runs at the local service's provider, where hosts are apart and nodes say whose they are."""
    wanted: dict[str, float] = {"cpu": 1, "gpu": config.gpus_per_trial}
    own = f"{LABEL}:{config.placement[config.local]}"
    if config.apart and own in ray.cluster_resources():  # type: ignore[no-untyped-call]
        wanted[own] = 0.001
    return wanted


def _selector(provider: str) -> dict[str, str]:
    """Where a provider's actors may run: on one machine, whose nodes nobody has labelled, anywhere."""
    labels = {node["Labels"].get(LABEL) for node in ray.nodes() if node["Alive"]} - {None}  # type: ignore[no-untyped-call]
    if labels and provider not in labels:
        raise ConfigError(
            f"no node of the cluster has the label {LABEL}={provider}, there are: {', '.join(sorted(labels))}; "
            "start one with --labels, or name its provider in 'providers'"
        )
    return {LABEL: provider} if labels else {}


class PartyActor:
    """An ``OwnParty`` in a process of its own."""

    def __init__(self, config: str, provider: str, dtype: Any, channels_last: bool) -> None:
        torch.set_num_threads(1)
        self._config, self._provider, self._mode = SearchConfig.model_validate_json(config), provider, ExecutionMode(dtype, channels_last)
        self._parts: dict[str, Part] = {}

    @cached_property
    def _party(self) -> OwnParty:
        """Made when it is first asked for: what goes wrong is then an answer, as an actor that cannot start has none."""
        services = load_services(self._config, self._provider)
        return OwnParty(services, dict.fromkeys(services, self._provider), lambda _: self._mode)

    def join(self, key: str, invitation: str) -> None:
        self._parts[key] = self._party.join(Invitation.model_validate_json(invitation))

    def leave(self, key: str) -> None:
        self._parts.pop(key, None)

    def ask_part(self, key: str, method: str, *arguments: Any) -> Any:
        return packed(getattr(self._parts[key], method)(*map(unpacked, arguments)))

    def boundary(self, service: str, position: int) -> tuple[tuple[int, ...], bool, str | None, bool]:
        found = self._party.boundary(service, position)
        return found.shape, found.nonnegative, found.vocabulary, found.masked

    def public(self, service: str) -> str:
        return self._party.public(service).model_dump_json()

    def measure(self, survey: str) -> str:
        return self._party.measure(Survey.model_validate_json(survey)).model_dump_json()

    def verify(self, services: list[str]) -> None:
        self._party.verify(services)

    def make_random(self, host: str, seed: int, images: bytes | None) -> None:
        self._party.make_random(host, seed, unpacked(images))


class RemoteParty:
    """``Party`` at an actor; it ends with the process that made it."""

    def __init__(self, config: SearchConfig, provider: str, mode: ExecutionMode) -> None:
        self.provider = provider
        # Of a worker and its hosts one at a time is at work: the worker's CPU is enough. They need not be where it is.
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": "DEFAULT"}
        if selector := _selector(provider):
            options["label_selector"] = selector
        actor_class = ray.remote(**options)(PartyActor)
        self.actor: Any = actor_class.remote(config.model_dump_json(), provider, mode.dtype, mode.channels_last)
        self.left: list[str] = []
        """Keys of parts that nobody refers to any more; the actor hears of them with the next invitation."""

    def join(self, invitation: Invitation) -> Part:
        while self.left:
            self.ask("leave", self.left.pop())
        return cast(Part, _RemotePart(self, invitation))

    def boundary(self, service: str, position: int) -> Boundary:
        return Boundary(*self.ask("boundary", service, position))

    def public(self, service: str) -> PublicService:
        return PublicService.model_validate_json(self.ask("public", service))

    def measure(self, survey: Survey) -> Times:
        return Times.model_validate_json(self.ask("measure", survey.model_dump_json()))

    def verify(self, services: Sequence[str]) -> None:
        self.ask("verify", list(services))

    def make_random(self, host: str, seed: int, images: SampleArray | None) -> None:
        self.ask("make_random", host, seed, images)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the actor answers.

        Raises:
            CodeRayError: what the party raised, or ServiceError where it is lost.
        """
        try:
            return unpacked(ray.get(getattr(self.actor, method).remote(*map(packed, arguments))))
        except RayTaskError as error:
            if isinstance(error.cause, CodeRayError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise ServiceError(
                f"provider {self.provider!r} was lost while it took part in the search ({type(error).__name__}); see to its node and "
                "run the same command again"
            ) from error


class _RemotePart:
    """``Part`` at an actor: each of its methods is a call there."""

    def __init__(self, party: RemoteParty, invitation: Invitation) -> None:
        self._party = party
        self._key = uuid.uuid4().hex
        party.ask("join", self._key, invitation.model_dump_json())
        # No call from here: garbage is collected at any moment, in the middle of another call or when Ray is down.
        weakref.finalize(self, party.left.append, self._key).atexit = False

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._party.ask, "ask_part", self._key, method)
