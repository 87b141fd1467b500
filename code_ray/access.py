"""Who may ask: API keys, of which only hashes are stored, each with its services and its rate. Pure: no Ray, no clock of its own.

A key is 256 random bits, so that one fast hash of it is as safe as a slow one would be of a password.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from code_ray.errors import ConfigError, RequestError, first_problem
from code_ray.metering import ComputeBucket

PREFIX = "cr_"
BURST_S = 2.0
"""Seconds by which a key may run ahead of its rate."""


class Key(BaseModel):
    """What is stored of a key: ``services`` it may ask (None: all), ``images_per_second`` (None: any number)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=80)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    services: tuple[str, ...] | None = None
    images_per_second: float | None = Field(None, gt=0)


class KeyFile(BaseModel):
    """All keys of a deployment, as they lie on disk (JSON)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...] = ()

    def with_key(self, name: str, services: tuple[str, ...] | None, images_per_second: float | None) -> tuple[KeyFile, str]:
        """Another file with one more key, and the key itself, which is stored nowhere.

        Raises:
            ConfigError: where there is a key of this name.
        """
        if name in {key.name for key in self.keys}:
            raise ConfigError(f"there is a key called {name!r}; remove it first, or choose another name")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = Key(name=name, sha256=_hash(secret), services=services, images_per_second=images_per_second)
        return KeyFile(keys=(*self.keys, key)), secret

    def without_key(self, name: str) -> KeyFile:
        """Another file without the key called ``name``.

        Raises:
            ConfigError: where there is none.
        """
        if name not in {key.name for key in self.keys}:
            raise ConfigError(f"there is no key called {name!r}; there are: {', '.join(key.name for key in self.keys) or 'none'}")
        return KeyFile(keys=tuple(key for key in self.keys if key.name != name))


def read_keys(file: Path) -> KeyFile:
    """Read and validate a key file.

    Raises:
        ConfigError: where it is missing or malformed; hashes are not repeated in the message.
    """
    try:
        return KeyFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error}); make it with: python -m deployments keys add NAME --file {file}") from error
    except ValidationError as error:
        raise ConfigError(f"{file} is malformed at {first_problem(error)}; make it again") from error


class Gate:
    """Lets requests in by their key. Without keys only those from this machine itself are."""

    def __init__(self, keys: KeyFile | None, share: float, now: float) -> None:
        """``share``: of every key's rate, where several routers have their part of it."""
        self._keys = None if keys is None else keys.keys
        self._buckets = {
            key.name: ComputeBucket(key.images_per_second * share, BURST_S * key.images_per_second * share, now)
            for key in (self._keys or ())
            if key.images_per_second is not None
        }

    def check(self, headers: Mapping[str, str], client: str | None, service: str | None) -> Key | None:
        """The key of a request with these headers (names in small letters) from address ``client``, None where none is needed.

        Raises:
            RequestError: 401 without a key that is known, 403 where it may not ask ``service``, or where keys are needed and none are
                configured.
        """
        if self._keys is None:
            if not is_loopback(client):
                raise RequestError(
                    "this server has no API keys and answers its own machine only; give its router keys_file to serve others", status=403
                )
            return None
        presented = _presented(headers)
        if presented is None:
            raise RequestError("an API key is needed; send it as 'Authorization: Bearer KEY'", status=401)
        found, digest = None, _hash(presented)
        for key in self._keys:  # to the end: how long it takes says nothing of where it lies
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise RequestError("the API key is not one of this server's; ask its operator for one", status=401)
        if service is not None and found.services is not None and service not in found.services:
            raise RequestError(f"key {found.name!r} may not ask {service[:80]!r}; it may ask: {', '.join(found.services)}", status=403)
        return found

    def charge(self, key: Key | None, images: int, now: float) -> None:
        """Count ``images`` of a request against its key's rate.

        Raises:
            RequestError: 429 where the key has used it up, with the time to wait.
        """
        bucket = self._buckets.get(key.name) if key is not None else None
        if bucket is None or key is None:
            return
        if (wait := bucket.wait_for(0.0, now)) > 0:
            raise RequestError(f"key {key.name!r} may send {key.images_per_second:g} images a second", status=429, retry_after_s=wait)
        bucket.charge(images, now)


def is_loopback(address: str | None) -> bool:
    """Whether a client's address is this machine itself."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)


def _presented(headers: Mapping[str, str]) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" and key.strip() else None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
