"""`raksha serve`: the whole service in one process, from its first start on, through signals and kills."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.functional.local_kit import Local, assert_holds, two_disks
from tests.functional.overlay_kit import KIB, MIB
from tests.functional.serve_kit import Served, assert_survives, how

pytestmark = pytest.mark.bed

UNIT = Path(__file__).parents[2] / "etc/systemd/raksha-serve.service"
DISKS = ("vda", "vdb")
FULL, DELTA = ("full", "full"), ("incremental", "delta")


@pytest.fixture
def served(bed: Bed, tmp_path: Path) -> Iterator[Served]:
    made = Served(bed, tmp_path)
    yield made
    made.close()


def test_from_the_first_start_to_a_restored_vm_and_on_after_the_second(
    bed: Bed, served: Served, tmp_path: Path
) -> None:
    guest = two_disks(bed)
    told = served.start()
    assert told["vault"] == f"file://{served.state}/vault"
    truth = {"full": guest.frozen_model()}
    soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
    job = served.job(guest.uuid, schedule={"every": 3600, "anchor": soon}, quiesce="never")
    full = served.until(lambda: served.runs(job), "the schedule fires")[0]["id"]
    run = served.available(job, full)
    assert (run["trigger"], run["kind"], how(run)) == ("schedule", "full", dict.fromkeys(DISKS, FULL))
    assert served.stop()[0] == 0

    guest.write("vda", 2 * MIB, 128 * KIB, 0x44)
    truth["incremental"] = guest.frozen_model()
    assert served.start()["login"] == told["login"]
    assert [run["id"] for run in served.runs(job)] == [full]
    second = served.queue(job)
    assert how(served.available(job, second)) == dict.fromkeys(DISKS, DELTA)
    for run_id, content in ((full, truth["full"]), (second, truth["incremental"])):
        assert_holds(served.reader, run_id, tmp_path / "out", guest, content)

    name = f"{bed.directory.name}-again"
    wanted = {"target": {"kind": "domain"}, "vms": [{"id": guest.uuid, "name": name}]}
    restore = served.ask("POST", f"backupjobs/{job}/backupjobruns/{second}", wanted)["id"]
    done = served.restored(restore)
    assert done["state"] == "done", done
    again = bed.host.connect().lookupByName(name)
    assert again.UUIDString() != guest.uuid
    again.undefine()
    assert served.stop()[0] == 0


@pytest.mark.slow
def test_incremental_for_ever(bed: Bed, served: Served, tmp_path: Path) -> None:
    """Retention takes the full run that a job began with; what builds on it comes to stand alone, and so it goes on."""
    guest = two_disks(bed)
    served.start()
    job = served.job(guest.uuid, quiesce="never", retention={"keep_last": 1})
    served.available(job, served.queue(job, "full"))
    for change in (0x51, 0x52, 0x53):
        guest.write("vda", 2 * MIB, 64 * KIB, change)
        truth = guest.frozen_model()
        last = served.queue(job)
        run = served.available(job, last)
        assert (run["kind"], how(run)) == ("incremental", dict.fromkeys(DISKS, DELTA))
        served.until(lambda: [each["id"] for each in served.runs(job)] == [last], "retention leaves the last one")  # noqa: B023
        assert_holds(served.reader, last, tmp_path / "out", guest, truth)
    assert served.reader.good("verify", "--data").json["findings"] == []
    assert served.stop()[0] == 0


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("engine", ["overlay", "pull"])
def test_the_unit_leaves_it_what_it_needs(bed: Bed, served: Served, tmp_path: Path, engine: str) -> None:
    words = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)).split()
    allowed = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in words)
    served.privileges = ["--no-new-privs", "--inh-caps", "-all", "--bounding-set", f"-all,{allowed}"]
    scratch = bed.directory / "scratch"
    scratch.mkdir(mode=0o711)
    served.sections["host"] |= {"fence": "true", "engine": engine, "scratch_dir": scratch}
    guest = two_disks(bed)
    served.start()
    status = Path(f"/proc/{served.process.pid}/status").read_text() if served.process else ""
    mask = int(re.findall(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)[0], 16)
    assert mask.bit_count() == len(words)
    job = served.job(guest.uuid, quiesce="never")
    for kind, change in (("full", 0x31), ("incremental", 0x32)):
        truth = guest.frozen_model()
        run = served.available(job, served.queue(job, kind))
        assert run["warnings"] == [] and run["vms"][0]["warnings"] == []
        assert_holds(served.reader, run["id"], tmp_path / "out", guest, truth)
        guest.write("vda", 1 * MIB, 70 * KIB, change)
    name = f"{bed.directory.name}-again"
    wanted = {"target": {"kind": "domain", "start": True}, "vms": [{"id": guest.uuid, "name": name}]}
    restore = served.ask("POST", f"backupjobs/{job}/backupjobruns/{run['id']}", wanted)["id"]
    done = served.restored(restore)
    again = bed.host.connect().lookupByName(name)
    again.destroy()
    again.undefine()
    assert done["state"] == "done"
    assert served.stop()[0] == 0
    Local(bed.uri, served.state, "").good("release", guest.uuid)  # and so the fence


def test_nobody_else_can_read_what_it_keeps(served: Served) -> None:
    served.start()
    served.stop()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in served.state.iterdir()}
    assert stat.S_IMODE(served.state.stat().st_mode) == 0o711  # QEMU gets to restored disks
    assert {"raksha.db", "users", "users.admin-password", "serve.lock", "journal.sqlite", "vault"} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o066 or (mode & 0o011 and name == "vault")} == {}


def test_what_it_prints_works(bed: Bed, served: Served) -> None:
    guest = two_disks(bed)
    process = subprocess.Popen(served.command(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[0].startswith("listening on http://127.0.0.1:")
        (curl,) = (line.strip().removeprefix("try").strip() for line in lines if line.strip().startswith("try"))
        deadline = time.monotonic() + 30
        found: list[str] = []
        while guest.uuid not in found and time.monotonic() < deadline:
            answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=30)
            found = [vm["id"] for vm in json.loads(answer.stdout)["vms"]]
        assert guest.uuid in found
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.slow
def test_killed_during_a_backup(bed: Bed, served: Served, tmp_path: Path) -> None:
    assert_survives(bed, served, tmp_path, "vault.put.segment")


@pytest.mark.slow
def test_a_second_one_on_the_same_folder_is_refused(served: Served) -> None:
    served.start()
    found = served.run()
    assert found.returncode == 4
    assert f"Another `raksha serve` works with {served.state}" in found.stderr
    assert served.ask("GET", "backupjobs") == {"backupjobs": []}
    served.kill()
    served.start()  # what a killed one leaves is no obstacle


@pytest.mark.slow
def test_a_backup_under_way_may_end(bed: Bed, served: Served) -> None:
    guest = two_disks(bed)
    served.start()
    job = served.job(guest.uuid, quiesce="never", bandwidth_limit=128 * KIB)
    run = served.queue(job, "full")
    served.until(lambda: served.shown(job, run)["progress"]["bytes_done"], "it stores")
    code, _ = served.stop()
    assert code == 0, served.log.read_text()[-3000:]
    served.start()
    found = served.shown(job, run)
    assert (found["state"], found["attempt"]) == ("available", 1), found
    assert served.log.read_text().count("backup begins") == 1


@pytest.mark.slow
def test_a_second_signal_puts_it_aside(bed: Bed, served: Served, tmp_path: Path) -> None:
    guest = two_disks(bed)
    truth = guest.frozen_model()
    served.start()
    job = served.job(guest.uuid, quiesce="never", bandwidth_limit=64 * KIB)
    run = served.queue(job, "full")
    served.until(lambda: served.shown(job, run)["progress"]["bytes_done"], "it stores")
    code, seconds = served.stop(signals=2)
    assert code == 0 and seconds < 6, (code, seconds, served.log.read_text()[-3000:])
    served.start()
    assert served.shown(job, run)["state"] in ("queued", "ready", "running")
    served.available(job, run)
    assert_holds(served.reader, run, tmp_path / "out", guest, truth)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--bind", "127.0.0.1:nonsense"], 2, "bind"),
        (["--bind", "192.0.2.1:9797"], 2, "Cannot assign requested address"),
        (["--vault", "ftp://somewhere"], 2, "unknown scheme"),
        (["--connect", "qemu:///session?socket=/nowhere"], 1, "libvirt"),
    ],
)
def test_what_cannot_work_is_told_at_the_start(served: Served, words: list[str], code: int, says: str) -> None:
    found = served.run(*words)
    assert (found.returncode, "Traceback" in found.stderr) == (code, False), found.stderr
    assert says in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "option", "value"),
    [("agent", "transport_url", "rabbit://a/"), ("scheduler", "transport_url", "rabbit://a/"),
     ("database", "connection", "mysql+pymysql://a/raksha")],
)  # fmt: skip
def test_options_of_separate_processes_are_refused(served: Served, section: str, option: str, value: str) -> None:
    served.sections.setdefault(section, {})[option] = value
    found = served.run()
    assert found.returncode == 2
    assert f"[{section}] {option} is for a service of several processes" in found.stderr


@pytest.mark.slow
def test_the_vault_is_chosen_once(served: Served, tmp_path: Path) -> None:
    chosen, other = f"file://{tmp_path}/chosen", f"file://{tmp_path}/other"
    assert served.start("--vault", chosen)["vault"] == chosen
    served.stop()
    assert served.start()["vault"] == chosen
    served.stop()
    found = served.run("--vault", other)
    assert found.returncode == 2
    assert f"this service stores in {chosen}" in found.stderr and not (tmp_path / "other").exists()
