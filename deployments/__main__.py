"""What operators do beside ``serve run``: python -m deployments doctor, deploy FILE, upgrade SERVICE FOLDER, join FIRST SECOND, keys add|list|remove."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import ray

from code_ray.access import KeyFile, read_keys
from code_ray.artifact import RunDirectory, write_text
from code_ray.errors import CodeRayError, ConfigError, DeploymentError
from code_ray.joining import join
from code_ray.wire import GROUPED
from deployments.config import DEFAULT_RUN_DIR
from deployments.doctor import examine
from deployments.placement import WITHIN_S, deploy
from deployments.upgrade import upgrade


def main() -> int:
    """Read the command line and do it; exit status 1 with one line where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m deployments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="what would keep a plan from being served, and how to mend it")
    doctor.add_argument("--run-dir", type=Path, default=DEFAULT_RUN_DIR, help="the plan (default: the one that ships)")
    doctor.add_argument("--host", default="127.0.0.1", help="where it will listen")
    doctor.add_argument("--port", type=int, default=8000)
    doctor.add_argument("--address", default="auto", help="the Ray cluster (default: the one that runs here, if any)")
    deploying = commands.add_parser("deploy", help="'serve deploy', and wait until all runs; what cannot be placed is named")
    deploying.add_argument("file", type=Path, help="a configuration as 'serve deploy' takes it")
    deploying.add_argument("--within", type=float, default=WITHIN_S, metavar="SECONDS", help="how long it may take (default: %(default)g)")
    deploying.add_argument("--address", default="auto", help="the Ray cluster (default: the one that runs here)")
    upgrading = commands.add_parser("upgrade", help="a plan for another version of a host's service, with its links fitted again")
    upgrading.add_argument("service", help="the host's service, as the plan calls it")
    upgrading.add_argument("folder", type=Path, help="the new version: service.json and weights.safetensors")
    upgrading.add_argument("--run-dir", type=Path, required=True, help="the plan that is served")
    upgrading.add_argument("--out", type=Path, required=True, help="a new folder for the plan that takes its place")
    joining = commands.add_parser("join", help="one plan out of those of two local services, which can then be asked together")
    joining.add_argument("first", type=Path, help="a run directory; it may have been joined before")
    joining.add_argument("second", type=Path, help="another, of a service that takes the same input")
    joining.add_argument("--out", type=Path, required=True, help="a new run directory")
    keys = commands.add_parser("keys", help="API keys; only their hashes are stored")
    verbs = keys.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add", help="make a key and print it, once")
    add.add_argument("name")
    add.add_argument("--services", nargs="+", help="services it may ask (default: all)")
    add.add_argument("--images-per-second", type=float, help="how much it may send (default: any number)")
    remove = verbs.add_parser("remove", help="a key that is not valid any more; routers notice within seconds")
    remove.add_argument("name")
    listing = verbs.add_parser("list", help="names, services and rates")
    for verb in (add, remove, listing):
        verb.add_argument("--file", type=Path, required=True, help="the file that the router's keys_file names")
    options = parser.parse_args()
    if options.command == "doctor":
        return _doctor(options)
    try:
        {"deploy": _deploy, "upgrade": _upgrade, "join": _join, "keys": _keys}[options.command](options)
    except CodeRayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _doctor(options: argparse.Namespace) -> int:
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        if options.address != "auto":
            causes = "it does not run, or the token here is not the cluster's (copy its auth_token, mode 600, to ~/.ray)"
            print(f"ConnectionError: no Ray answers at {options.address}: {causes}: {error}", file=sys.stderr)
            return 1
    bad = 0
    for finding in examine(options.run_dir.absolute(), options.host, options.port):
        print(finding, flush=True)
        bad += not finding.is_good
    print("nothing is in the way" if not bad else f"{bad} to mend")
    return int(bad > 0)


def _deploy(options: argparse.Namespace) -> None:
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise DeploymentError(f"no Ray answers at {options.address} ({error}); start one, or copy its auth_token to ~/.ray") from error
    begun = time.monotonic()
    deploy(options.file, options.within, lambda text: print(f"{time.monotonic() - begun:5.0f} s  {text}", flush=True))


def _upgrade(options: argparse.Namespace) -> None:
    for refit in upgrade(options.run_dir, options.service, options.folder, options.out):
        print(refit)
    print(f"{options.out} is ready; put it in the place of {options.run_dir} on every node (docs/serving.md, another plan)")


def _join(options: argparse.Namespace) -> None:
    plan = join(RunDirectory(options.first), RunDirectory(options.second), options.out)
    for trunk in plan.trunks:
        print("one pass for " + " and ".join(planned.path for planned, _ in plan.behind(trunk)))
    if not plan.trunks:
        print("no paths share a trunk: each service's own are run for a request to both (docs/search.md, trunk)")
    print(f"{options.out} is ready; ask {GROUPED.join(plan.tasked)} for an answer of each")


def _keys(options: argparse.Namespace) -> None:
    if options.verb == "add":
        known = read_keys(options.file) if options.file.exists() else KeyFile()
        services = None if options.services is None else tuple(options.services)
        if options.images_per_second is not None and not options.images_per_second > 0:
            raise ConfigError(f"--images-per-second is {options.images_per_second:g}; give a number above 0")
        changed, secret = known.with_key(options.name, services, options.images_per_second)
        _write(options.file, changed)
        print(secret)
    elif options.verb == "remove":
        _write(options.file, read_keys(options.file).without_key(options.name))
    else:
        for key in read_keys(options.file).keys:
            rate = "any number of images" if key.images_per_second is None else f"{key.images_per_second:g} images a second"
            print(f"{key.name}: {'all services' if key.services is None else ', '.join(key.services)}, {rate}")


def _write(file: Path, keys: KeyFile) -> None:
    """Replace the file whole, readable by its owner alone."""
    try:
        write_text(file, keys.model_dump_json(indent=1) + "\n", mode=0o600)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error}); its folder must be there, with space in it") from error


if __name__ == "__main__":
    sys.exit(main())
