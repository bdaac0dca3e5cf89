"""`raksha` as a person types it, against a `raksha serve` with a real guest: from `vm list` to a restored VM.

`openstack protection` is asked the same: its plugin is loaded by the real `openstack`.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed
from tests.functional.local_kit import assert_holds, two_disks
from tests.functional.overlay_kit import KIB
from tests.functional.serve_kit import Served

pytestmark = pytest.mark.bed

OPENSTACK = Path(sys.executable).with_name("openstack")


@pytest.fixture
def served(bed: Bed, tmp_path: Path) -> Iterator[Served]:
    made = Served(bed, tmp_path)
    yield made
    made.close()


class Raksha:
    """The command, in processes of its own."""

    def __init__(self, served: Served, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "RAKSHA_"))}
        self.login = {"RAKSHA_STATE_DIR": str(served.state), "RAKSHA_URL": served.told["url"]}
        self.environment = {**clean, "HOME": str(folder)}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "raksha.cmd.main", *words]

    def __call__(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {**self.environment, **(environment or self.login)}
        found = subprocess.run(self.command(*words), env=given, capture_output=True, text=True, timeout=120)
        assert found.returncode == code, (words, found)
        assert "Traceback" not in found.stderr
        return found

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "-f", "json").stdout)


def test_from_the_list_of_vms_to_a_restored_one(bed: Bed, served: Served, tmp_path: Path) -> None:
    guest = two_disks(bed)
    served.start()
    raksha = Raksha(served, tmp_path)
    name = bed.directory.name
    seen = served.until(lambda: [vm for vm in raksha.json("vm", "list") if vm["ID"] == guest.uuid], "its agent sees it")
    vm = seen[0]["Name"]

    raksha(*f"job create nightly --vm {vm} --every day --at 02:00 --quiesce never --keep-daily 7".split())
    truth = guest.frozen_model()
    waited = raksha("job", "run", "nightly", "--wait", "-f", "json")
    run = json.loads(waited.stdout)
    assert (run["state"], run["kind"]) == ("available", "full")
    assert "available" in waited.stderr and "100 %" in waited.stderr
    assert_holds(served.reader, run["id"], tmp_path / "out", guest, truth)

    again = f"{name}-again"
    plan = raksha.json("restore", "create", "latest", "--name", again, "--dry-run")
    assert [disk["resource"] for disk in plan["vms"][0]["disks"]] == ["vda", "vdb"]
    restored = raksha("restore", "create", "latest", "--job", "nightly", "--name", again, "--wait", "-f", "json")
    assert json.loads(restored.stdout)["state"] == "done"
    bed.host.connect().lookupByName(again).undefine()

    assert raksha("job", "delete", "nightly", code=4).stderr.count("--with-runs") == 1
    raksha("job", "delete", "nightly", "--with-runs", "--wait")
    assert raksha.json("job", "list") == []
    raksha("job", "delete", "nightly", "other", code=3)


def test_who_is_asking(served: Served, tmp_path: Path) -> None:
    served.start()
    raksha = Raksha(served, tmp_path)
    password = Path(served.told["login"]["password_file"]).read_text().strip()
    url = served.told["url"]
    basic = {"OS_AUTH_TYPE": "http_basic", "OS_ENDPOINT": url, "OS_USERNAME": "admin", "OS_PASSWORD": password}
    assert json.loads(raksha("job", "list", "-f", "json", **basic, OS_PROJECT_ID="default").stdout) == []
    assert json.loads(raksha("job", "list", "-f", "json", **basic | {"OS_ENDPOINT": f"{url}/v1/default"}).stdout) == []
    assert "--os-project-id" in raksha("job", "list", code=2, **basic).stderr
    raksha("--os-project-id", "default", "job", "list", **basic)
    wrong = raksha("job", "list", code=2, **basic | {"OS_PASSWORD": "wrong", "OS_PROJECT_ID": "default"}).stderr
    assert "OS_PASSWORD" in wrong and "request id req-" in wrong
    (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": {"here": {
        "auth_type": "http_basic", "auth": {"endpoint": url, "username": "admin", "password": password},
        "data_protection_endpoint_override": f"{url}/v1/default"}}}))  # fmt: skip
    raksha("--os-cloud", "here", "--os-project-id", "default", "job", "list",
           OS_CLIENT_CONFIG_FILE=str(tmp_path / "clouds.yaml"))  # fmt: skip
    nobody = raksha("job", "list", code=2, RAKSHA_STATE_DIR=str(tmp_path / "nothing")).stderr
    assert "--state-dir" in nobody
    served.stop()
    assert "does the service run" in raksha("job", "list", code=1).stderr


def test_a_watch_on_a_terminal_that_is_broken_off(bed: Bed, served: Served, tmp_path: Path) -> None:
    guest = two_disks(bed)
    served.start()
    raksha = Raksha(served, tmp_path)
    job = served.job(guest.uuid, quiesce="never", bandwidth_limit=64 * KIB)
    mine, theirs = pty.openpty()
    command, environment = raksha.command("job", "run", "job", "--wait"), {**raksha.environment, **raksha.login}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE,
        stderr=theirs, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    os.close(theirs)
    shown = ""
    deadline = time.monotonic() + 60
    while "running" not in shown and time.monotonic() < deadline:
        shown += said(mine)
        assert process.poll() is None, shown
    assert "running" in shown, shown
    process.send_signal(signal.SIGINT)
    while chunk := said(mine):
        shown += chunk
    assert process.wait(30) == 130
    os.close(mine)
    assert process.stdout is not None and process.stdout.read() == ""
    process.stdout.close()
    assert "The run goes on" in shown and "raksha run watch" in shown and "Traceback" not in shown
    (run,) = raksha.json("run", "list", "job")
    served.available(job, run["ID"])  # it went on


def said(terminal: int) -> str:
    """What comes next; nothing: the other end is closed."""
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError:
        return ""


def test_the_other_front_door(served: Served, tmp_path: Path) -> None:
    served.start()
    environment = Raksha(served, tmp_path).environment

    def openstack(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        given = {**environment, **more}
        return subprocess.run([OPENSTACK, *words], env=given, capture_output=True, text=True, timeout=120)

    helped = openstack("protection", "job", "create", "--help")
    assert helped.returncode == 0 and "openstack protection job create nightly --vm web" in helped.stdout, helped
    assert "--os-data-protection-api-version" in openstack("--help").stdout
    password = Path(served.told["login"]["password_file"]).read_text().strip()
    url = f"{served.told['url']}/v1/default"
    login = {"OS_AUTH_TYPE": "http_basic", "OS_ENDPOINT": url, "OS_USERNAME": "admin", "OS_PASSWORD": password}
    found = openstack("protection", "job", "list", "-f", "json", **login)
    assert (found.returncode, json.loads(found.stdout or "null")) == (0, []), found
    missing = openstack("protection", "job", "show", "nothing", **login)
    assert missing.returncode == 3 and "`openstack protection job list` shows" in missing.stderr
