"""A real OpenStack Swift on loopback: proxy, account, container and object servers as child processes.

`scripts/setup-swift` installs it into a virtual environment of its own. Every process dies with the test run, also
when that is killed. Nothing outside the given folder is read or written, `/etc/swift` included.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pwd
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

import pytest

CHECKOUT = Path(__file__).parents[2]
VENV = CHECKOUT / ".cache" / "swift-venv"
TEMPLATES = Path(__file__).with_name("swift_conf")


class SwiftBed:
    """Running servers. One object server a replica, each with a device of its own."""

    user = "test:tester"
    key = "testing"
    #: may log in, and has no right in the account of the other
    stranger = "other:stranger"
    stranger_key = "strange"

    def __init__(self, folder: Path, replicas: int = 1, token_life: int = 86400) -> None:
        self._folder = folder
        self._token_life = token_life
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = free_ports(3 + replicas)
        self._ports = dict(zip(["proxy", "account", "container", *_objects(replicas)], ports, strict=True))
        self._replicas = replicas
        for number in range(replicas):
            (folder / "devices" / f"d{number}").mkdir(parents=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._ports['proxy']}"

    @property
    def auth_url(self) -> str:
        return f"{self.address}/auth/v1.0"

    @property
    def storage_url(self) -> str:
        return f"{self.address}/v1/AUTH_test"

    @property
    def env(self) -> dict[str, str]:
        """What `swift` and Raksha want to find in the environment."""
        return {"ST_AUTH": self.auth_url, "ST_USER": self.user, "ST_KEY": self.key}

    def start(self) -> None:
        self._write_configuration()
        for name in self._ports:
            self._launch(name)
        self._wait()

    def stop(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def kill(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one server: `proxy`, `account`, `container`, `object0`, ..."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def restart(self, name: str) -> None:
        if name in self._processes:
            self.kill(name)
        self._launch(name)
        self._wait()

    def revoke_tokens(self) -> None:
        """Void all tokens given out so far, as their expiry would: the proxy keeps them in its memory only."""
        self.restart("proxy")

    @contextmanager
    def stopped(self, *names: str) -> Iterator[None]:
        """These servers hold connections and answer nothing."""
        for name in names:
            self._processes[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for name in names:
                self._processes[name].send_signal(signal.SIGCONT)

    def files(self, container: str, key: str) -> list[Path]:
        """The files that hold an object, one a replica."""
        digest = hashlib.md5(f"raksha/AUTH_test/{container}/{key}raksha".encode()).hexdigest()
        return sorted(self._folder.glob(f"devices/*/objects/*/*/{digest}/*.data"))

    def _write_configuration(self) -> None:
        (self._folder / "swift.conf").write_text((TEMPLATES / "swift.conf").read_text())
        self._configure("proxy", "proxy.conf", token_life=str(self._token_life))
        for kind, name in [("account", "account"), ("container", "container"), *_kinds(self._replicas)]:
            self._configure(name, "storage.conf", kind=kind, devices=str(self._folder / "devices"))
        objects = ":".join(str(self._ports[name]) for name in _objects(self._replicas))
        rings = [f"{kind}:{self._ports[kind]}" for kind in ("account", "container")]
        command = [VENV / "bin" / "python", TEMPLATES / "rings.py", self._folder]
        subprocess.run([*command, *rings, f"object:{objects}"], check=True, timeout=60)

    def _configure(self, name: str, template: str, **values: str) -> None:
        common = {"port": str(self._ports[name]), "user": pwd.getpwuid(os.geteuid()).pw_name}
        text = Template((TEMPLATES / template).read_text()).substitute(common, swift_dir=str(self._folder), **values)
        (self._folder / f"{name}.conf").write_text(text)

    def _launch(self, name: str) -> None:
        program = VENV / "bin" / f"swift-{name.rstrip('0123456789')}-server"
        with (self._folder / f"{name}.log").open("ab") as log:
            # setpriv: the kernel ends the server when the process that runs the tests is gone
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", program, self._folder / f"{name}.conf"],
                env={**os.environ, "PYTHONPATH": str(TEMPLATES)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self) -> None:
        """Until every server answers."""
        deadline = time.monotonic() + 60
        for name, port in self._ports.items():
            url = f"http://127.0.0.1:{port}/healthcheck"
            while name in self._processes and not _answers(url):
                if self._processes[name].poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / f"{name}.log").read_text(errors="replace")
                    raise RuntimeError(f"swift {name} server does not run: {log[-2000:]}")
                time.sleep(0.05)


def _objects(replicas: int) -> list[str]:
    return [f"object{number}" for number in range(replicas)]


def _kinds(replicas: int) -> list[tuple[str, str]]:
    return [("object", name) for name in _objects(replicas)]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        # the storage servers know no health check, and say so
        return True
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that outgoing connections get: a server that is killed and started
    again finds its own free."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    wanted = random.SystemRandom().sample(range(min(10000, first // 2), first), 50 + 2 * count)
    return list(itertools.islice(filter(_free, wanted), count))


def _free(port: int) -> bool:
    with socket.socket() as each:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            each.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def running(folder: Path, replicas: int = 1, token_life: int = 86400) -> Iterator[SwiftBed]:
    """A Swift for the length of a `with`."""
    if not (VENV / "bin" / "swift-proxy-server").exists():
        raise RuntimeError("Swift is not installed: run scripts/setup-swift")
    bed = SwiftBed(folder, replicas, token_life)
    try:
        bed.start()
        yield bed
    finally:
        bed.stop()


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftBed]:
    """One Swift for the whole run; tests keep apart by container prefixes."""
    with running(tmp_path_factory.mktemp("swift")) as bed:
        yield bed
