"""Hosts and the network between them, made of namespaces on this machine.

A *room* has a switch (a bridge) in a network namespace that reaches nothing else. Each host in it has its own network, processes, shared
memory and disk: an overlay over this machine's, so that it finds what is installed here and what it writes or removes is its own. All of
it belongs to one process that ends when this one does, however that ends, and with it everything goes: nothing is left to clean up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.99.0"
RATE = "1gbit"
"""Of each direction of a host's link."""
TOOLS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
}
"""Programs that are needed, and where Debian has them."""
TREE = Path(__file__).parent.parent.parent
PRIVATE = ("/tmp", "/run")
"""Folders of which each host has its own, empty at first."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_ROOM = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/netns
mount -t tmpfs tmpfs "$STATE"
ip link set lo up
ip link add switch type bridge
ip address add "$NETWORK.1/24" dev switch
ip link set switch up
ip netns add try
ip link add port-try type veth peer name eth0 netns try
ip netns delete try
mkdir -p "$STATE/try/up" "$STATE/try/work" "$STATE/try/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$STATE/try/up,workdir=$STATE/try/work" "$STATE/try/root"
umount "$STATE/try/root"
echo ready
exec cat
"""

_CONNECT = """
ip netns add "$NAME"
ip link add "port-$NAME" type veth peer name eth0 netns "$NAME"
ip link set "port-$NAME" master switch up
ip -n "$NAME" link set lo up
ip -n "$NAME" address add "$ADDRESS/24" dev eth0
ip -n "$NAME" link set eth0 up
ip -n "$NAME" route add default via "$NETWORK.1"
for end in "dev port-$NAME" "-n $NAME dev eth0"; do
    case "$end" in -n*) space="-n $NAME"; end="dev eth0" ;; *) space="" ;; esac
    tc $space qdisc add $end root tbf rate "$RATE" burst 1mb latency 50ms || echo "the kernel cannot limit links: $NAME has all there is" >&2
done
"""

_BOOT = """
mount --make-rprivate /
disk="$STATE/$NAME"
# What this machine has mounted elsewhere than at / and the hosts need is laid under in the same way.
for place in / $PLACES; do
    part="$disk/parts$(echo "$place" | tr / _)"
    mkdir -p "$part/up" "$part/work" "$disk/root"
    mount -t overlay overlay -o "lowerdir=$place,upperdir=$part/up,workdir=$part/work" "$disk/root$place"
done
root="$disk/root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
# This tree and its Python may lie where each host has now something of its own.
for place in $HIDDEN; do
    part="$disk/parts$(echo "$place" | tr / _)"
    mkdir -p "$part/up" "$part/work" "$root$place"
    mount -t overlay overlay -o "lowerdir=$place,upperdir=$part/up,workdir=$part/work" "$root$place"
done
mkdir -p "$root/run/sshd" "$root/srv/shared"
mount --bind "$FILES/shared" "$root/srv/shared"
rm -rf "$root/root/.ssh" "$root/root/.ray" "$root/root/.code_ray" "$root/root/.cache/code_ray" "$root/etc/code_ray" "$root/opt/code_ray"
mkdir -m 700 -p "$root/root/.ssh"
mkdir -p "$root/opt/code_ray"
install -m 600 "$FILES/key.pub" "$root/root/.ssh/authorized_keys"
install -m 600 "$FILES/key" "$root/run/sshd/host_key"
sed -i 's/^root:[^:]*:/root:*:/' "$root/etc/shadow"
hostname "$NAME"
echo "127.0.0.1 localhost $NAME" > "$root/etc/hosts"
exec chroot "$root" "$SSHD" -D -e -f /dev/null -h /run/sshd/host_key -o PidFile=none -o UsePAM=no -o UseDNS=no -o MaxStartups=100
"""


class RoomError(Exception):
    """Namespaces cannot be made here."""


@dataclass(frozen=True)
class Host:
    """One machine in the room; ``boot`` is the process that everything on it descends from."""

    name: str
    address: str
    boot: subprocess.Popen[bytes]


@dataclass
class Room:
    """The switch and its hosts. ``files`` holds the key and logs of the hosts; each of them finds ``files``/shared as /srv/shared, and
    nothing else is the same for two of them.
    """

    files: Path
    say: Callable[[str], None]
    hosts: dict[str, Host] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._state = self.files.with_name(f"{self.files.name}-state")
        self._state.mkdir()
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc", _ROOM]
        # It ends where its standard input does, so with this process whatever becomes of that.
        self._keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self._environment(), start_new_session=True
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"ready\n":
            _, stderr = self._keeper.communicate()
            raise RoomError(f"namespaces with a bridge and an overlay cannot be made here: {stderr.decode().strip()}")
        (inner,) = _children(self._keeper.pid)
        self.network = ["nsenter", "--target", str(inner), "--net"]
        """What a command begins with that is to run beside the switch."""
        self._enter = [*self.network, "--mount", "--pid"]
        self._disks = Path(f"/proc/{inner}/root{self._state}")

    def add(self, name: str, number: int) -> Host:
        """Connect a host with an address that ends in ``number`` and start it, up to its sshd."""
        address = f"{NETWORK}.{number}"
        environment = self._environment(NAME=name, ADDRESS=address)
        subprocess.run([*self._enter, "sh", "-euc", _CONNECT], env=environment, check=True, timeout=60)
        spaces = ["ip", "netns", "exec", name, "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        with (self.files / f"{name}.log").open("wb") as log:
            boot = subprocess.Popen(
                [*self._enter, *spaces, "sh", "-euc", _BOOT],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        host = self.hosts[name] = Host(name, address, boot)
        end = time.monotonic() + 30
        while self.run(name, "true", check=False).returncode != 0:
            if time.monotonic() > end or boot.poll() is not None:
                raise RuntimeError(f"host {name!r} does not come up: {(self.files / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.1)
        return host

    def ssh(self, name: str, command: str) -> list[str]:
        """What runs ``command`` on a host as somebody who has logged in there."""
        options = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "BatchMode": "yes",
            "ConnectTimeout": "5",
        }
        told = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        return [*self.network, "ssh", "-n", "-i", str(self.files / "key"), *told, f"root@{self.hosts[name].address}", command]

    def run(self, name: str, command: str, *, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a host.

        Raises:
            RuntimeError: with what it printed, where it fails and ``check`` is set.
        """
        done = subprocess.run(self.ssh(name, command), capture_output=True, text=True, check=False, timeout=timeout)
        if check and done.returncode != 0:
            raise RuntimeError(f"on {name}: {command}\nended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        return done

    def watch(self, name: str, command: str, timeout: float = 600) -> str:
        """Run a long command on a host and show its lines as they come; returns them.

        Raises:
            RuntimeError: where it fails or is not done in ``timeout`` seconds.
        """
        lines: list[str] = []
        with subprocess.Popen(self.ssh(name, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            alarm = threading.Timer(timeout, process.kill)
            alarm.start()
            try:
                for line in process.stdout:
                    lines.append(line)
                    self.say(f"    {name}: {line.rstrip()}")
            finally:
                alarm.cancel()
        if process.returncode != 0:
            raise RuntimeError(f"on {name}: {command}\nended with {process.returncode} (at most {timeout:g} s)")
        return "".join(lines)

    def processes(self, name: str) -> list[int]:
        """The first process of a host and those that it started or that were left to it, by the numbers that they have here."""
        (inner,) = _children(self.hosts[name].boot.pid)
        (sshd,) = _children(inner)
        return [sshd, *_children(sshd)]

    def root(self, name: str) -> Path:
        """A host's files, as they are found from here."""
        return Path(f"/proc/{self.processes(name)[0]}/root")

    def written(self, name: str) -> list[Path]:
        """Folders with what a host has on its disk that this machine has not, or has otherwise."""
        return list((self._disks / name).glob("parts*/up"))

    def cut(self, name: str) -> None:
        """Pull a host's cable."""
        self._switch("ip", "link", "set", f"port-{name}", "down")

    def mend(self, name: str) -> None:
        """Put a host's cable back in."""
        self._switch("ip", "link", "set", f"port-{name}", "up")

    def kill(self, name: str) -> None:
        """End every process of a host at once."""
        boot = self.hosts.pop(name).boot
        for child in _children(boot.pid):
            os.kill(child, signal.SIGKILL)
        boot.wait(30)

    def close(self) -> None:
        """End everything."""
        for name in list(self.hosts):
            self.kill(name)
        self._keeper.communicate()
        shutil.rmtree(self._state)

    def _switch(self, *command: str) -> None:
        subprocess.run([*self._enter, *command], check=True, timeout=30)

    def _environment(self, **more: str) -> Mapping[str, str]:
        needed = [path.resolve() for path in (TREE, Path(sys.prefix), Path(sys.base_prefix))]
        places = sorted({str(_mount_point(path)) for path in needed} - {"/"})
        hidden = [path for path in needed if any(path.is_relative_to(place) for place in PRIVATE)]
        hidden = [path for path in hidden if not any(other in path.parents for other in hidden)]
        sshd = shutil.which("sshd", path=PATH) or ""
        told = {
            "STATE": str(self._state),
            "FILES": str(self.files),
            "NETWORK": NETWORK,
            "RATE": RATE,
            "PLACES": " ".join(places),
            "HIDDEN": " ".join(map(str, hidden)),
            "SSHD": sshd,
        }
        return {"PATH": PATH, "LANG": "C.UTF-8"} | told | more


@contextmanager
def open_room(files: Path, say: Callable[[str], None]) -> Iterator[Room]:
    """A room with a key by which its hosts let people in.

    Raises:
        RoomError: where this machine cannot have one, with the reason.
    """
    if os.geteuid() != 0:
        raise RoomError("network namespaces take root")
    if missing := sorted(tool for tool in TOOLS if shutil.which(tool, path=PATH) is None):
        raise RoomError(f"not installed: {', '.join(f'{tool} ({TOOLS[tool]})' for tool in missing)}")
    (files / "shared").mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(files / "key")], check=True)
    room = Room(files, say)
    try:
        yield room
    finally:
        room.close()


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _mount_point(path: Path) -> Path:
    while not path.is_mount():
        path = path.parent
    return path
