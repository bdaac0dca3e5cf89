"""What a person sees: steps, a bar on a terminal, results, warnings; and what a program reads: JSON only."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import raksha
from raksha import errors
from tests.bed import Bed
from tests.bed.disks import Disk
from tests.functional.local_kit import WRONG_USE, Local, Story, nothing_changes, two_disks
from tests.functional.overlay_kit import MIB, Guest

pytestmark = pytest.mark.bed

#: every command of `raksha local`
COMMANDS = (
    "backup", "prune", "delete", "list", "show", "verify", "restore", "export", "vms", "release", "recover",
    "install-hook", "remove-hook",
)  # fmt: skip
#: options that all of them have, and all that use a vault
COMMON = {"--help", "--vault", "--connect", "--config", "--state-dir", "--workers", "--json", "--quiet"}
DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")


@pytest.mark.slow
def test_a_story_in_lines(bed: Bed, local: Local, tmp_path: Path) -> None:
    guest = two_disks(bed)
    name = guest.machine.name
    first = local("backup", name, json=False)
    assert first.code == 0
    assert "\r" not in first.err and "\x1b" not in first.err, "no bar where there is no terminal"
    assert re.search(rf"^{name}: 2 disk\(s\) captured, crash$", first.err, re.M)
    assert re.search(rf"^{name}:vda: full \(first_run\), .* sent$", first.err, re.M)
    (run,) = re.findall(r"^restore point ([0-9a-f-]{36})$", first.out, re.M)
    assert re.search(r"^    vdb: 4 MiB, full \(first_run\), .* new data, .* sent$", first.out, re.M)

    quiet = local("backup", name, "--quiet", json=False)
    assert quiet.code == 0 and quiet.err == "" and quiet.out.startswith("restore point ")

    listed = local("list", json=False).out.splitlines()
    assert listed[0].split() == ["RESTORE", "POINT", "TAKEN", "JOB", "VMS", "KIND", "SENT"]
    assert listed[1].startswith(run) and len(listed) == 3
    assert listed[2].split()[-3] == "incremental"
    shown = local("show", "latest", json=False).out
    assert f"vdb of {guest.uuid}: parent {run}" in shown
    assert "4 disk copies are sound (everything was read and hashed)" in local("verify", "--data", json=False).out
    assert "(presence and sizes; --data reads everything)" in local("verify", json=False).out

    into = tmp_path / "into"
    into.mkdir()
    would = local("restore", "latest", "--into", into, "--dry-run", json=False)
    assert would.out.splitlines() == [
        f"vda would be restored to {into}/{name}-vda.qcow2: 4 MiB",
        f"vdb would be restored to {into}/{name}-vdb.raw: 4 MiB",
    ]
    assert list(into.iterdir()) == []
    done = local("restore", "latest", "--into", into, json=False)
    assert re.search(rf"^vdb restored to {into}/{name}-vdb.raw: 4 MiB, .* written from \d segments$", done.out, re.M)
    exported = local("export", "latest", "--disk", "vdb", "--into", into / "tree", json=False).out.splitlines()
    assert len(exported) == 2 and ", on " in exported[1] and ", on " not in exported[0]

    would = local("delete", run, "--dry-run", json=False).out
    assert f"would be deleted: {run} of {name}" in would and "1 restore points stay; at least" in would
    assert "1 restore points stay" in local("prune", "--keep-last", "1", json=False).out
    assert "back on" in local("release", name, json=False).out
    assert local("release", name, json=False).out == f"{name}: nothing to release\n"
    local("delete", "latest")
    assert local("list", json=False).out == "no restore points\n"


def test_a_bar_on_a_terminal(bed: Bed, local: Local) -> None:
    disk = bed.raw("big", 64 * MIB)
    disk.path.write_bytes(random.Random(3).randbytes(64 * MIB))
    guest = Guest(bed, [disk])
    seen, out = on_terminal(local.command("backup", guest.uuid, "--workers", "1"))
    assert out.startswith("restore point ")
    assert re.search(r"vda: +\d+%.*64\.0M.*\d+:\d\d.*/s", seen), seen[-2000:]
    assert re.search(rf"{guest.machine.name}: 1 disk\(s\) captured, offline\r\n", seen)
    quiet, _ = on_terminal(local.command("backup", guest.uuid, "--quiet"))
    assert quiet == ""
    silent, out = on_terminal(local.command("backup", guest.uuid, "--json"))
    assert silent == "" and json.loads(out)["warnings"] == []


def on_terminal(command: list[str]) -> tuple[str, str]:
    """What a terminal as standard error gets, and standard output, of a command that succeeds."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, text=True) as process:
        os.close(end)
        seen = b""
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # Linux says so when nobody has the other end open any more
                break
            if not data:
                break
            seen += data
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 0, seen.decode()
    return seen.decode(), out


def test_json_and_nothing_else(bed: Bed, local: Local, tmp_path: Path) -> None:
    """Standard output is one document, standard error is empty, for results and for errors."""
    guest = two_disks(bed)
    into = tmp_path / "into"
    into.mkdir()
    documents = {}
    for verb, *words in (
        ["vms"], ["backup", guest.uuid], ["list"], ["show", "latest"], ["verify", "--data"],
        ["restore", "latest", "--into", into], ["export", "latest", "--into", into / "x"],
        ["prune", "--keep-last", "1", "--dry-run"], ["delete", "latest", "--dry-run"], ["recover", guest.uuid],
        ["release", guest.uuid],
    ):  # fmt: skip
        documents[verb] = set(local.good(verb, *words).json)
    assert documents == {
        "vms": {"vms"}, "backup": {"run", "warnings"}, "list": {"runs", "damaged"}, "show": {"run", "disks"},
        "verify": {"copies", "findings"}, "restore": {"vm", "uuid", "disks", "warnings"}, "export": {"files"},
        "prune": {"deleted", "kept", "objects_removed", "objects_kept"},
        "delete": {"deleted", "kept", "objects_removed", "objects_kept"}, "release": {"released"},
        "recover": {"vms"},
    }  # fmt: skip
    hooks = {"install-hook", "remove-hook"}  # they change the host, not a bed: test_hook.py
    assert set(documents) == set(COMMANDS) - hooks
    answer = local("show", "nonsense")
    assert answer.err == "" and set(answer.json) == {"error", "fields"}
    assert set(answer.json["error"]) == {"code", "message", "hint"}


def test_vms_tells_what_can_be_protected(bed: Bed, local: Local) -> None:
    good = two_disks(bed, "good")
    shared = Disk(bed.raw("shared", 4 * MIB).path, "raw", extra="<shareable/>")
    bad = Guest(bed, [bed.raw("c", 4 * MIB), shared], name="bad")
    with nothing_changes(local, good, bad):
        found = {vm["name"]: vm for vm in local.good("vms").json["vms"]}
        shown = local("vms", json=False).out
    assert found[good.machine.name]["uuid"] == good.uuid
    assert "shareable" in json.dumps(found[bad.machine.name])
    assert "shareable" not in json.dumps(found[good.machine.name])
    for guest in (good, bad):
        assert guest.machine.name in shown
    assert "shareable" in shown


def test_vms_asks_the_engine_that_would_capture_each(bed: Bed, local: Local) -> None:
    """A VM of Nova is for `pull`, unless the other engine is asked for by name."""
    guest = two_disks(bed, "nova")
    machine = guest.machine
    instance = "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>"
    machine.connection.defineXML(machine.xml(inactive=True).replace("<memory ", instance + "<memory ", 1))
    (found,) = [vm for vm in local.good("vms").json["vms"] if vm["name"] == machine.name]
    assert (found["engine"], found["reason"]) == ("pull", None)
    assert [disk["protectable"] for disk in found["disks"]] == [True, True]
    assert [disk["counts_from"] for disk in found["disks"]] == [[], []]
    config = bed.directory / "raksha.conf"
    config.write_text("[host]\nengine = overlay\n")
    (found,) = [vm for vm in local.good("vms", "--config", config).json["vms"] if vm["name"] == machine.name]
    assert (found["engine"], found["reason"]) == ("overlay", None)


def test_a_warning_is_told_even_when_quiet(bed: Bed, local: Local, tmp_path: Path) -> None:
    guest = two_disks(bed, start=False)
    story = Story(local, guest, tmp_path / "out")
    story.backup()
    (document,) = local.folder.glob("backupjobs/*/*/run.json")
    document.write_bytes(b"{")
    answer = local("backup", guest.uuid, "--quiet", json=False)
    assert answer.code == 0
    assert re.fullmatch(r"warning: an older restore point cannot be read: [^\n]*run\.json[^\n]*\n", answer.err)


def test_the_vault_may_come_from_the_environment(bed: Bed, local: Local) -> None:
    guest = two_disks(bed, start=False)
    local.backup(guest)
    command = [word for word in local.command("list") if word != "--vault" and word != local.vault]
    environment = {**os.environ, "RAKSHA_VAULT": local.vault}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert guest.machine.name in done.stdout
    environment.pop("RAKSHA_VAULT")
    missing = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert missing.returncode == WRONG_USE and "--vault" in missing.stderr


def say(*words: str) -> str:
    command = [sys.executable, "-m", "raksha.cmd.main", *words]
    environment = {name: value for name, value in os.environ.items() if name != "RAKSHA_VAULT"} | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_help_names_every_command_and_option() -> None:
    assert say("--version") == f"raksha {raksha.__version__}\n"
    overview = say("local", "--help")
    assert tuple(re.findall(r"^    ([a-z-]+)(?: {2,}\S|$)", overview, re.M)) == COMMANDS
    for command in COMMANDS:
        for line in re.findall(r"^  (?:-|[A-Z]).*$", say("local", command, "--help"), re.M):
            assert re.search(r"\S {2,}\S", line) or len(line) > 20, f"{command}: {line} has no help"


def test_the_document_names_every_command_option_and_exit_code() -> None:
    text = DOCUMENT.read_text()
    for command in COMMANDS:
        (section,) = re.findall(rf"^### `?{command}`?.*?(?=^###? )", text + "\n## ", re.M | re.S)
        usage = say("local", command, "--help")
        own, _, _ = usage.partition("\nhost:\n")
        for option in set(re.findall(r"--[a-z-]+", own)) - COMMON:
            assert option in section, f"{command} {option}"
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RakshaError)]
    for code in {kind.exit_code for kind in kinds}:
        assert re.search(rf"^\| {code} \|", text, re.M), f"exit code {code}"
