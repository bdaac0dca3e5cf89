"""Names of VMs and texts of others may hold anything: they become no path, no option, and no line of a log."""

from __future__ import annotations

import io
import logging
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from raksha.agent.restore_task import RestoreTask
from raksha.agent.work import Work
from raksha.db import migrate
from raksha.logs import FORMAT, OneLine, harmless, named
from raksha.states import BackupKind
from raksha.tasks import Claimed, RestoreOrder, Stored
from raksha.vault.collect import OURS, SEGMENT
from raksha.vault.metadata import encode
from tests.bed.databases import opened
from tests.bed.pretend import PretendAgent
from tests.contract.test_crafted_vault import Bed
from tests.unit.scheduler.service import Service

EVIL = (
    "../../../../etc/cron.d/x", "/etc/shadow", "a\nWARNING raksha [- - -] all is well", "\x1b[2J\x1b]0;x\x07", "..",
    "-o", 'json:{"driver": "file", "filename": "/etc/shadow"}', "nbd:unix:/x", "a,backing.file=/etc/shadow",
    "%2e%2e%2f", "<script>alert(1)</script>", "\u202etxt.exe", "\u2028x", "x" * 255, "$(id)", "{0.__class__}", "%s%n",
    "'; DROP TABLE x",
)  # fmt: skip
_VM = "web"


class Named(PretendAgent):
    """Its VMs have the names that their owners want."""

    name = ""

    def store(self, task: Claimed) -> Stored:
        found = super().store(task)
        xml = f"<domain><name>{self.name}</name></domain>"
        machine = replace(found.machine, name=self.name, domain_xml=xml)
        return replace(found, vm=replace(found.vm, name=self.name), machine=machine, warnings=(f"{self.name}: x",))


class NamedService(Service):
    """Its agents are such."""

    def agent(self, host: str = "host-a", **more: int) -> PretendAgent:
        made = Named(self.ask, host, self.folder / "spool", **more)
        self.agents.append(made)
        return made


def test_a_name_is_no_path_and_no_line(tmp_path: Path) -> None:
    shown = io.StringIO()
    handler = named()
    handler.setStream(shown)
    logging.getLogger().addHandler(handler)
    try:
        with opened(f"sqlite:///{tmp_path}/raksha.db") as database:
            migrate.upgrade(database)
            bed = Bed(tmp_path, NamedService(database, tmp_path))
            before = {path for path in tmp_path.rglob("*") if path.is_file()}
            for name in EVIL:
                bed.agent.name = name
                run = bed.service.backup(bed.job, BackupKind.FULL)
                task = bed.claimed(run, _VM)
                assert isinstance(task.order, RestoreOrder)
                made = RestoreTask(bed.host, Work(task, time.monotonic()), task.order)()
                for disk in made.disks:
                    path = Path(disk["path"])
                    assert path.parent == tmp_path / "restored" / task.order.restore
                    assert re.fullmatch(r"[\w.+@-]{1,230}", path.name) and not path.name.startswith("."), path
                    assert path.read_bytes() == bed.agent.captured[run][_VM, disk["disk"]]
                logging.getLogger("raksha.x").warning("VM %s: %s", name, ValueError(name))
            inside = bed.vault, tmp_path / "restored", tmp_path / "spool", tmp_path / "state"
            made_now = {path for path in tmp_path.rglob("*") if path.is_file()} - before
            assert all(any(path.is_relative_to(each) for each in inside) for path in made_now)
            names = {str(path.relative_to(bed.vault)) for path in bed.vault.rglob("*") if path.is_file()}
            fixed = re.compile(r"backupjobs/(vault\.json|keys/[\w-]+|epochs/\d+)")
            assert not [each for each in names if not any(of.fullmatch(each) for of in (OURS, SEGMENT, fixed))]
    finally:
        logging.getLogger().removeHandler(handler)
    lines = shown.getvalue().split("\n")
    assert len(lines) > len(EVIL) and lines[-1] == ""
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in lines[:-1])
    assert all(line.isprintable() for line in lines)


@settings(max_examples=300, deadline=None)
@given(st.text(), st.text())
def test_a_record_is_one_line(text: str, more: str) -> None:
    record = logging.LogRecord("raksha", logging.INFO, "", 1, "VM %s: %r", (text, more), None)
    record.task_id = record.run_id = record.request_id = text
    line = OneLine(FORMAT).format(record)
    assert len(line.splitlines()) == 1 and "\x1b" not in line
    line.encode()


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_what_anybody_writes_is_shown_as_it_is(text: str) -> None:
    assert harmless(text) == text


def test_a_traceback_passes_for_no_line() -> None:
    try:
        raise ValueError("x\n2026-11-22 00:00:00,000 INFO raksha.api [- - -] all is well\x1b[1m")
    except ValueError as error:
        record = logging.LogRecord(
            "raksha", logging.ERROR, "", 1, "broken", (), (ValueError, error, error.__traceback__)
        )
    record.task_id = record.run_id = record.request_id = "-"
    first, *others = OneLine(FORMAT).format(record).split("\n")
    assert first.endswith("broken") and others and all(line.startswith("    ") for line in others)
    assert not any("\x1b" in line for line in others)


@pytest.mark.parametrize("name", EVIL)
def test_documents_hold_a_name_as_it_is(name: str) -> None:
    from raksha.vault.metadata import VMMetadata, decode

    document = VMMetadata(format=1, vm="v", name=name, power="off", domain_xml=name, live_xml=None, nvram=None)
    assert decode(encode(document), VMMetadata, "x") == document
