"""`raksha serve` as a person starts it, and its REST API as a person asks it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bed import Bed
from tests.functional.local_kit import Local, assert_holds, two_disks
from tests.functional.overlay_kit import KIB, MIB, settings

#: seconds for anything to come about
PATIENCE = 90.0
OVER = ("available", "error", "cancelled", "needs_attention", "done")


class Served:
    """One service with its folder; started, killed and started again."""

    def __init__(self, bed: Bed, folder: Path, **options: object) -> None:
        self.bed = bed
        self.state = folder / "state"
        self.log = folder / "serve.log"
        self.config = folder / "raksha.conf"
        self.restores = bed.directory / "restores"
        self.restores.mkdir(mode=0o777)
        bed.host.give(self.restores)
        host = settings(bed)
        names = ("overlay_reserve_min", "overlay_watermark", "workers", "trash_hours", "commit_timeout")
        self.sections: dict[str, dict[str, object]] = {
            "host": {name: getattr(host, name) for name in names},
            "agent": {"look_interval": 1, "poll_interval": 0.5, "report_interval": 0.1, "restore_dirs": self.restores,
                      **options},
            "scheduler": {"interval": 0.3, "heartbeat_interval": 1, "task_lease": 4, "commit_lease": 5},
        }  # fmt: skip
        #: of setpriv
        self.privileges: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self.told: dict[str, Any] = {}

    def command(self, *more: object) -> list[str]:
        lines = [line for name, values in self.sections.items()
                 for line in (f"[{name}]", *(f"{option} = {value}" for option, value in values.items()))]  # fmt: skip
        self.config.write_text("\n".join(lines) + "\n")
        words = ["serve", "--state-dir", self.state, "--bind", "127.0.0.1:0", "--connect", self.bed.uri, "--config",
                 self.config]  # fmt: skip
        return [sys.executable, "-m", "raksha.cmd.main", *map(str, words), *map(str, more)]

    def run(self, *more: object) -> subprocess.CompletedProcess[str]:
        """To its end."""
        return subprocess.run(self.command(*more), capture_output=True, text=True, timeout=PATIENCE)

    def start(self, *more: object, crash_at: str = "") -> dict[str, Any]:
        """Until it listens. What it told."""
        environment = {**os.environ, **({"RAKSHA_CRASH_AT": crash_at} if crash_at else {})}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                ["setpriv", *self.privileges, "--pdeathsig", "KILL", *self.command("--json", *more)],
                env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1].rstrip() != "}":
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.log.read_text()[-3000:]}"
            lines.append(line)
        self.told = json.loads("".join(lines))
        return self.told

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def dead(self) -> None:
        """It killed itself at a crash point."""
        assert self.process is not None
        assert self.process.wait(PATIENCE) == -signal.SIGKILL, self.log.read_text()[-3000:]

    def stop(self, signals: int = 1) -> tuple[int, float]:
        """Its exit code, and the seconds that it took."""
        assert self.process is not None
        began = time.monotonic()
        for number in range(signals):
            if number:
                time.sleep(1.0)
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE), time.monotonic() - began

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # -- asked over REST ----------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, status: tuple[int, ...] = (200, 201, 202)) -> Any:
        """The body of the answer."""
        login = self.told["login"]
        password = Path(login["password_file"]).read_text().strip()
        basic = base64.b64encode(f"{login['user']}:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.told['url']}/v1/{login['project']}/{path}"
        request = urllib.request.Request(url, data, headers if data else {**headers, "Content-Type": ""}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            found, content = error.code, error.read()
        assert found in status, (method, path, found, content)
        return json.loads(content) if content else None

    def sees(self, *vms: str) -> None:
        self.until(lambda: set(vms) <= {vm["id"] for vm in self.ask("GET", "vms")["vms"]}, "VMs are seen")

    def job(self, vm: str, **more: Any) -> str:
        self.sees(vm)
        return str(self.ask("POST", "backupjobs", {"name": "job", "vms": [{"id": vm}], **more})["id"])

    def queue(self, job: str, kind: str = "incremental") -> str:
        return str(self.ask("POST", f"backupjobs/{job}/{kind}")["id"])

    def runs(self, job: str) -> list[dict[str, Any]]:
        return list(self.ask("GET", f"backupjobs/{job}/backupjobruns")["backupjobruns"])

    def shown(self, job: str, run: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"backupjobs/{job}/backupjobruns/{run}"))

    def reaches(self, job: str, run: str, *states: str) -> dict[str, Any]:
        """Wait for one of the states; any other end is a failure."""
        found = self.until(lambda: (shown := self.shown(job, run))["state"] in (*OVER, *states) and shown, "run ends")
        assert found["state"] in states, (found, self.log.read_text()[-3000:])
        return dict(found)

    def available(self, job: str, run: str) -> dict[str, Any]:
        return self.reaches(job, run, "available")

    def restored(self, id: str) -> dict[str, Any]:
        """A restore when it has ended."""
        going = ("queued", "running", "cancelling")
        return dict(self.until(
            lambda: (found := self.ask("GET", f"restores/{id}"))["state"] not in going and found, "the restore ends"
        ))  # fmt: skip

    def until(self, true: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := true()):
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s; {self.log.read_text()[-3000:]}"
            time.sleep(0.05)
        return found

    @property
    def reader(self) -> Local:
        """Another host that has nothing but the vault."""
        return Local("test:///default", self.state.parent / "reader", f"{self.told['vault']}/default")


def how(run: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Kind and mode of every disk of a run of one VM."""
    (vm,) = run["vms"]
    return {disk["resource"]: (disk["kind"], disk["mode"]) for disk in vm["resources"]}


def assert_survives(bed: Bed, served: Served, folder: Path, point: str) -> None:
    """Killed at a crash point of an increment: the next start makes the same run whole, and goes on incrementally."""
    guest = two_disks(bed)
    served.start()
    job = served.job(guest.uuid, quiesce="never")
    served.available(job, served.queue(job, "full"))
    served.stop()
    guest.write("vda", 1 * MIB, 70 * KIB, 0x31)
    truth = guest.frozen_model()
    served.start(crash_at=point)
    run = served.queue(job)
    served.dead()
    served.start()
    served.available(job, run)
    assert_holds(served.reader, run, folder / "out", guest, truth)
    guest.write("vdb", 3 * MIB, 4 * KIB, 0x33)
    later = guest.frozen_model()
    last = served.queue(job)
    assert how(served.available(job, last)) == dict.fromkeys(("vda", "vdb"), ("incremental", "delta"))
    assert_holds(served.reader, last, folder / "out", guest, later)
    assert len(served.runs(job)) == 3
    assert served.reader.good("verify", "--data").json["findings"] == []
    assert served.stop()[0] == 0
