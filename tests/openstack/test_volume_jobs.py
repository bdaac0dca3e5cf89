"""Volumes in jobs: whose they are, force, agents that are killed over them, and nothing that stays in the cloud."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from configparser import RawConfigParser
from typing import Any

import pytest

from tests.bed.deployment import Command
from tests.openstack.cloud.rest import Cloud, Refused
from tests.openstack.service import Service, canary, gone

pytestmark = pytest.mark.timeout(1500)

OTHER = "elsewhere"
#: bytes per second: so that an agent can be killed while it reads
SLOW = 512 * 1024


@pytest.fixture(scope="module")
def agents(raksha: Service) -> dict[str, Command]:
    """By host: that of the hypervisor, and one of another host, which sees the same storage."""
    first = raksha.commands["agent"]
    read = RawConfigParser()
    read.read_string((raksha.folder / "agent.conf").read_text())
    sections: dict[str, dict[str, Any]] = {name: dict(read[name]) for name in read.sections()}
    own = sections["agent"]["host"]
    sections["agent"]["host"] = OTHER
    sections["host"]["state_dir"] = raksha.folder / "state-elsewhere"
    second = raksha.commands["agent-2"] = Command("agent-2", "raksha.cmd.agent", raksha.folder, sections, {})
    second.start()
    return {own: first, OTHER: second}


@pytest.fixture(scope="module")
def volumes(demo: Cloud) -> Iterator[dict[str, str]]:
    """By their type: volumes with data, attached to nothing."""
    image = demo.glance.get("/images?name=raksha")["images"][0]["id"]
    made = {}
    for kind in ("ceph", "nfs"):
        body = {"name": f"data-{kind}", "size": 1, "volume_type": kind, "imageRef": image}
        made[kind] = str(demo.cinder.post("/volumes", {"volume": body})["volume"]["id"])
        demo.wait_for_volume(made[kind], "available")
    yield made
    for volume in made.values():
        demo.delete_volume(volume)


def refused(api: Any, body: dict[str, Any]) -> str:
    """What is wrong with a job."""
    with pytest.raises(Refused) as caught:
        api.post("/backupjobs", {"name": "not to be", **body})
    assert caught.value.status == 400, str(caught.value)
    return str(caught.value)


def left(demo: Cloud, *volumes: str) -> dict[str, set[str]]:
    """Snapshots, and volumes but those."""
    return {
        "snapshots": {each["id"] for each in demo.cinder.get("/snapshots/detail")["snapshots"]},
        "volumes": {each["id"] for each in demo.cinder.get("/volumes/detail")["volumes"]} - set(volumes),
        "attachments": {each["id"] for each in demo.cinder.get("/attachments")["attachments"]},
    }


NOTHING: dict[str, set[str]] = {"snapshots": set(), "volumes": set(), "attachments": set()}


def start(raksha: Service, demo: Cloud, job: str, kind: str = "incremental") -> str:
    return f"/backupjobs/{job}/backupjobruns/{raksha.of(demo).post(f'/backupjobs/{job}/{kind}')['id']}"


def half_way(raksha: Service, demo: Cloud, run: str) -> str:
    """The host whose agent has it, when it has sent something and has something in the cloud."""

    def streaming() -> Any:
        shown = raksha.of(demo).get(run)
        assert shown["state"] in ("queued", "ready", "running"), shown
        (vm,) = shown["vms"] or [None]
        sent = vm is not None and vm["resources"] and vm["resources"][0]["progress"]["bytes_sent"]
        return vm["host"] if sent and vm["temporary"] else None

    return str(raksha.wait(streaming, 180))


def test_a_volume_is_protected_by_its_project_alone_and_by_force_where_it_is_in_use(
    raksha: Service, demo: Cloud, alt: Cloud, volumes: dict[str, str]
) -> None:
    volume = volumes["ceph"]
    assert f"There is no volume {volume}." in refused(raksha.of(alt), {"volumes": [{"id": volume}]})
    there_is_none = "00000000-0000-4000-8000-000000000000"
    assert "There is no volume" in refused(raksha.of(demo), {"volumes": [{"id": there_is_none}]})
    server = demo.server("uses it")
    try:
        assert "There is no server" in refused(raksha.of(alt), {"vms": [{"id": server, "source": "storage"}]})
        assert "force" in refused(raksha.of(demo), {"vms": [{"id": server, "source": "storage"}]})
        demo.attach(server, volume)
        said = refused(raksha.of(demo), {"volumes": [{"id": volume}]})
        assert "in-use" in said and "force" in said
        body = {"name": "both", "volumes": [{"id": volume, "force": True}],
                "vms": [{"id": server, "source": "storage", "force": True}]}  # fmt: skip
        job = raksha.of(demo).post("/backupjobs", body)
        assert job["volumes"] == [{"id": volume, "force": True}]
        assert [(vm["id"], vm["source"], vm["force"]) for vm in job["vms"]] == [(server, "storage", True)]
        # what the job names in the same way is not asked about again
        path = f"/backupjobs/{job['id']}"
        changed = raksha.of(demo).ask("PUT", path, {"name": "one", "vms": []}, headers={"If-Match": "*"})
        assert (changed["vms"], changed["volumes"]) == ([], job["volumes"])
        raksha.of(demo).delete(path)
    finally:
        demo.delete_server(server)
    demo.wait_for_volume(volume, "available")


def test_an_agent_that_is_killed_over_a_volume_is_followed_by_another_one(
    raksha: Service, agents: dict[str, Command], demo: Cloud, volumes: dict[str, str]
) -> None:
    volume = volumes["ceph"]
    body = {"name": "taken over", "volumes": [{"id": volume}], "bandwidth_limit": SLOW}
    job = raksha.of(demo).post("/backupjobs", body)["id"]
    # with its project named by no VM: nobody but an agent that can take volumes could do it
    run = start(raksha, demo, job)
    first = half_way(raksha, demo, run)
    before = left(demo, *volumes.values())
    assert before["snapshots"]
    agents[first].end(signal.SIGKILL)
    (other,) = agents.keys() - {first}
    raksha.wait(lambda: raksha.of(demo).get(run)["vms"][0]["host"] == other)

    def ended() -> Any:
        shown = raksha.of(demo).get(run)
        return shown if shown["state"] in ("available", "error") else None

    shown = raksha.wait(ended, 240)
    assert shown["state"] == "available", (shown, raksha.logs()[-6000:])
    (vm,) = shown["vms"]
    assert (vm["vm_id"], vm["source"], vm["host"], vm["consistency"]) == (volume, "volume", other, "offline")
    assert vm["temporary"] == []
    assert [each["resource"] for each in vm["resources"]] == ["volume"]
    assert left(demo, *volumes.values()) == NOTHING
    # of a volume there is nothing to define
    for kind in ("server", "domain", "in_place"):
        with pytest.raises(Refused) as caught:
            raksha.of(demo).post(run, {"target": {"kind": kind}, "dry_run": True})
        assert caught.value.status == 400 and "is a volume" in str(caught.value)
    assert raksha.of(demo).post(run, {"target": {"kind": "volume"}, "dry_run": True})["problems"] == []
    agents[first].start()
    remove(raksha, demo, job, volume)


def test_what_the_last_agent_leaves_is_removed_by_a_scheduler(
    raksha: Service, agents: dict[str, Command], demo: Cloud, volumes: dict[str, str]
) -> None:
    volume = volumes["nfs"]
    body = {"name": "left", "volumes": [{"id": volume}], "bandwidth_limit": SLOW}
    job = raksha.of(demo).post("/backupjobs", body)["id"]
    run = start(raksha, demo, job)
    half_way(raksha, demo, run)
    before = left(demo, *volumes.values())
    assert before["snapshots"] and before["volumes"] and before["attachments"]
    (shown,) = raksha.of(demo).get(run)["vms"][0]["temporary"]
    assert (shown["volume_id"], shown["previous_status"]) == (volume, "available")
    assert {shown["temp_snapshot_id"]} == before["snapshots"] and {shown["temp_volume_id"]} == before["volumes"]
    for agent in agents.values():
        agent.end(signal.SIGKILL)
    raksha.of(demo).post(f"{run}/cancel")
    raksha.wait(lambda: raksha.of(demo).get(run)["state"] == "cancelled")
    raksha.wait(lambda: raksha.of(demo).get(run)["vms"][0]["temporary"] == [], 180)
    assert left(demo, *volumes.values()) == NOTHING
    assert demo.cinder.get(f"/volumes/{volume}")["volume"]["status"] == "available"
    for agent in agents.values():
        agent.start()
    remove(raksha, demo, job, volume)
    canary(raksha, demo)


def remove(raksha: Service, demo: Cloud, job: str, volume: str) -> None:
    """A job that had kept a snapshot for its next run leaves none; what is not its own stays."""
    made = {}
    for of in (job, "another job"):
        marks = {"raksha_job": of, "raksha_run": "a run", "raksha_vm": volume}
        body = {"snapshot": {"volume_id": volume, "name": "kept", "force": True, "metadata": marks}}
        made[of] = demo.cinder.post("/snapshots", body)["snapshot"]["id"]

    def available() -> bool:
        shown = [demo.cinder.get(f"/snapshots/{each}")["snapshot"]["status"] for each in made.values()]
        return set(shown) == {"available"}

    raksha.wait(available)
    path = f"/backupjobs/{job}"
    raksha.of(demo).delete(f"{path}?with_runs=true")
    raksha.wait(lambda: gone(raksha.of(demo), path), 180)
    assert left(demo)["snapshots"] == {made["another job"]}
    demo.cinder.delete(f"/snapshots/{made['another job']}")
    raksha.wait(lambda: gone(demo.cinder, f"/snapshots/{made['another job']}"))
