"""`[agent]` of the configuration: which host it is, how much it takes on, where it may restore to.

How VMs are captured on the host, `[host]` says (`config.py`).
"""

from __future__ import annotations

import socket
from pathlib import Path

from msgspec import Struct
from oslo_config import cfg

from raksha.errors import SettingsWrong

STANDARD_FILE = Path("/etc/raksha/raksha.conf")


class AgentSettings(Struct, frozen=True):
    """Times are seconds."""

    #: one agent a host, the same name after a restart: its VMs and what it captured are found by it
    host: str = ""
    #: placement may name it
    zone: str = ""
    #: URL of oslo.messaging
    transport_url: str = ""
    #: backups, restores and verifications at once
    capacity: int = 4
    #: between two questions for work, where nobody wakes it
    poll_interval: float = 5.0
    #: between two reports of progress of one task
    report_interval: float = 1.0
    #: for an answer over the bus
    patience: float = 10.0
    #: between two looks at all VMs
    look_interval: float = 15.0
    #: for what is under way, when it is told to stop
    drain_timeout: float = 60.0
    #: restores write below these and nowhere else; the first is where they write if nobody says
    restore_dirs: tuple[Path, ...] = ()
    #: restores write volumes of Cinder on this host where it can attach them, not by way of images
    attach_volumes: bool = True
    #: keep a snapshot of each volume that is taken from storage, where its storage can tell what has changed since
    storage_differences: bool = False
    #: VMs of restore points that are booted at once to see whether they come up; 0: none
    test_restores: int = 1
    #: where they have their disks; None: below the state directory
    test_restore_dir: Path | None = None
    #: at most, of each: MiB of memory, and processors
    test_restore_memory: int = 2048
    test_restore_vcpus: int = 2
    #: of Prometheus; port 0: none
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 0


_DEFAULTS = AgentSettings()

OPTIONS = [
    cfg.StrOpt("host", default="",
               help="A name of its own for each host, the same after a restart: VMs and captures are found by it. "
               "Unset: the name of the host."),
    cfg.StrOpt("zone", default="", help="The zone of this host, for jobs that say where work may be done."),
    cfg.StrOpt("transport_url", default="", secret=True,
               help="The message bus: rabbit://USER:PASSWORD@HOST:5672/. raksha-agent does not start without; raksha "
               "serve has its own."),
    cfg.IntOpt("capacity", default=_DEFAULTS.capacity, min=1,
               help="Backups, restores and verifications that it does at once."),
    cfg.FloatOpt("poll_interval", default=_DEFAULTS.poll_interval, min=0.1,
                 help="Seconds between two questions for work, where nobody wakes it."),
    cfg.FloatOpt("report_interval", default=_DEFAULTS.report_interval, min=0.1,
                 help="Seconds between two reports of progress of one task."),
    cfg.FloatOpt("patience", default=_DEFAULTS.patience, min=0.5, help="Seconds to wait for an answer over the bus."),
    cfg.FloatOpt("look_interval", default=_DEFAULTS.look_interval, min=1,
                 help="Seconds between two looks at all VMs of the host."),
    cfg.FloatOpt("drain_timeout", default=_DEFAULTS.drain_timeout, min=0,
                 help="Seconds that it waits for what is under way when it is told to stop. What has not ended by then "
                 "is handed back."),
    cfg.ListOpt("restore_dirs", default=[],
                help="Directories below which restores may write, with commas between them; the first is where they "
                "write if nobody says. QEMU must be able to get there. Unset: restores in the state directory."),
    cfg.BoolOpt("attach_volumes", default=_DEFAULTS.attach_volumes,
                help="Restores write volumes of Cinder on this host, attached by os-brick, where that is possible: for "
                "root, with os-brick, and what the storage needs (keyrings of Ceph in /etc/ceph, mount.nfs, ...). "
                "Otherwise new volumes are filled from images, and others are not written over."),
    cfg.BoolOpt("storage_differences", default=_DEFAULTS.storage_differences,
                help="Of volumes taken from storage: keep a snapshot of each between the runs of a job, so that "
                "Ceph tells what has changed since, and not all of the volume is read each time. Its owner cannot "
                "delete a volume with a snapshot, and the snapshot counts against the project's quota."),
    cfg.IntOpt("test_restores", default=_DEFAULTS.test_restores, min=0,
               help="VMs of restore points that are booted on this host at once to see whether they come up: without a "
               "network, from copies of their disks that go afterwards. They count against capacity, and get what is "
               "left of it. 0: none on this host."),
    cfg.StrOpt("test_restore_dir", default="",
               help="Where these VMs have their disks: as much room as the data of the largest, and 4 GiB for what it "
               "writes. QEMU must be able to get there. Unset: in the state directory."),
    cfg.IntOpt("test_restore_memory", default=_DEFAULTS.test_restore_memory, min=64,
               help="MiB of memory that such a VM gets at most."),
    cfg.IntOpt("test_restore_vcpus", default=_DEFAULTS.test_restore_vcpus, min=1,
               help="Processors that such a VM gets at most."),
    cfg.StrOpt("metrics_address", default=_DEFAULTS.metrics_address,
               help="Address of the metrics for Prometheus: http://ADDRESS:PORT/metrics."),
    cfg.PortOpt("metrics_port", default=_DEFAULTS.metrics_port, help="Port of the metrics; 0: none."),
]  # fmt: skip


def load(path: Path | None = None) -> AgentSettings:
    """From a file (default: /etc/raksha/raksha.conf if it is there) and `OS_AGENT__*` variables.

    Raises `SettingsWrong`.
    """
    file = path or (STANDARD_FILE if STANDARD_FILE.exists() else None)
    conf = cfg.ConfigOpts()
    conf.register_opts(OPTIONS, group="agent")
    try:
        conf([], project="raksha", default_config_files=[str(file)] if file else [], default_config_dirs=[])
        found = {option.name: conf.agent[option.name] for option in OPTIONS}
    except (cfg.Error, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=str(error)) from error
    found["host"] = found["host"] or socket.gethostname()
    found["restore_dirs"] = tuple(Path(each) for each in found["restore_dirs"])
    found["test_restore_dir"] = Path(found["test_restore_dir"]) if found["test_restore_dir"] else None
    if found["test_restore_dir"] is not None and not found["test_restore_dir"].is_absolute():
        raise SettingsWrong(detail=f"test_restore_dir: {found['test_restore_dir']} is no absolute path")
    if wrong := [str(each) for each in found["restore_dirs"] if not each.is_absolute()]:
        raise SettingsWrong(detail=f"restore_dirs: {wrong[0]} is no absolute path")
    return AgentSettings(**found)
