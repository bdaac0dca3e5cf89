"""`[scheduler]` of the configuration: how often it looks, how much may run at once, how long it waits for others."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from msgspec import Struct
from oslo_config import cfg

from raksha.errors import SettingsWrong

STANDARD_FILE = Path("/etc/raksha/raksha.conf")


class SchedulerSettings(Struct, frozen=True):
    """Times are seconds."""

    #: one of its own for each scheduler, the same after a restart
    name: str = ""
    #: URL of oslo.messaging by which others wake it; empty: it looks by itself, as often as `interval` says
    transport_url: str = ""
    #: between two looks at what is due and what waits
    interval: float = 5.0
    #: commits, deletions and collections at once
    workers: int = 4
    #: a commit or deletion without a sign of its scheduler is taken over after that
    commit_lease: float = 60.0
    #: since its last heartbeat an agent counts as gone
    agent_timeout: float = 60.0
    #: runs of one project at once, where it has no limit of its own; -1: any number
    max_runs_per_project: int = 10
    # of [api], for schedulers keep to what the API tells
    #: restore points of one project, and bytes that they refer to, where it has no limits of its own; -1: any number
    max_runs: int = -1
    max_stored_bytes: int = -1
    #: whose VMs are those that belong to no project; empty: nobody's
    unowned_vms_project: str = ""
    #: where there is a Nova: whether projects may protect VMs that it does not have, as definitions say whose they are
    libvirt_vms: bool = False
    #: a run waits for an agent of its VMs, for a vault, for VMs to select, for room in its project; then it has failed
    max_wait: float = 6 * 3600.0
    #: a run that has waited for slots for so long gets the next ones: none overtakes it any more
    max_overtaken: float = 900.0
    #: between two heartbeats of an agent
    heartbeat_interval: float = 10.0
    #: without a word of its agent, the claim of a task is over after that
    task_lease: float = 60.0
    #: for all tasks of a run to be claimed, for a consistency group to gather
    gather_timeout: float = 120.0
    #: for all members of a group to freeze, and then to snapshot
    freeze_timeout: float = 20.0
    #: since the end of its lease a task of a host that is gone has failed
    host_patience: float = 1800.0
    #: claims of a task that any agent can do; then it has failed
    max_claims: int = 5
    #: seconds that deleted restore points stay in the vault
    trash_seconds: float = 0.0
    #: seconds that runs which failed are kept, for who wants to know why
    keep_failed: float = 30 * 86400.0
    #: seconds between two looks at all jobs for restore points that are kept no longer
    retention_interval: float = 3600.0
    #: seconds between two collections of the garbage of a vault
    collect_interval: float = 6 * 3600.0
    #: the restore points of a job are read again so many seconds after the last time; 0: never
    verify_every: float = 7 * 86400.0
    #: hundredths of their data, others each time
    verify_percent: int = 15
    #: bytes per second that each of these reads; 0: any number
    verify_bandwidth: int = 50 << 20
    #: VMs of the newest restore point of a job are booted so many seconds after the last time, where the job says
    #: nothing; 0: never
    test_restore_every: float = 0.0
    #: seconds that each VM has to come up, where nobody says
    test_restore_timeout: int = 600
    #: test restores at once
    max_test_restores: int = 2
    #: seconds after which silent processes, answers to repeated requests and the like are forgotten
    forget_services: float = 30 * 86400.0
    #: where maps are put together; empty: the system's temporary folder
    spool_dir: str = ""
    #: of Prometheus; port 0: none
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 0
    #: retries of a failed run, where its job says nothing
    retries: int = 2
    #: before the first of them; doubled for each further one, at most an hour
    retry_delay: float = 300.0

    def spool(self) -> Path:
        """A folder that is there."""
        return Path(self.spool_dir or tempfile.gettempdir())


_DEFAULTS = SchedulerSettings()

OPTIONS = [
    cfg.StrOpt("name", default="",
               help="A name of its own for each scheduler, the same after a restart. Unset: the name of the host."),
    cfg.StrOpt("transport_url", default="", secret=True,
               help="The message bus by which others wake the scheduler: rabbit://USER:PASSWORD@HOST:5672/. Unset: it "
               "looks by itself."),
    cfg.FloatOpt("interval", default=_DEFAULTS.interval, min=0.1,
                 help="Seconds between two looks at what is due and what waits."),
    cfg.IntOpt("workers", default=_DEFAULTS.workers, min=1, help="Commits, deletions and collections at once."),
    cfg.FloatOpt("commit_lease", default=_DEFAULTS.commit_lease, min=1,
                 help="Seconds after which the commits, deletions and collections of a scheduler that is silent are "
                 "taken over."),
    cfg.FloatOpt("agent_timeout", default=_DEFAULTS.agent_timeout, min=1,
                 help="Seconds after its last heartbeat after which an agent counts as gone."),
    cfg.IntOpt("max_runs_per_project", default=_DEFAULTS.max_runs_per_project, min=-1,
               help="Runs of one project at once, where it has no limit of its own; -1: any number. How many VMs of a "
               "host are backed up at once, its agent's capacity says; how many runs write to a vault at once, its "
               "vault service."),
    cfg.StrOpt("unowned_vms_project", default="",
               help="The project whose jobs may protect VMs that belong to no project. Unset: none."),
    cfg.BoolOpt("libvirt_vms", default=_DEFAULTS.libvirt_vms,
                help="In a cloud with Nova: whether projects may also protect VMs that Nova does not have, where an "
                "agent sees the project in their definition. Whose those are, a hypervisor alone says."),
    cfg.FloatOpt("max_wait", default=_DEFAULTS.max_wait, min=0,
                 help="Seconds that a run waits for an agent of its VMs, a vault, or room before it has failed."),
    cfg.FloatOpt("max_overtaken", default=_DEFAULTS.max_overtaken, min=0,
                 help="Seconds that a run waits for slots before no other is let past it."),
    cfg.FloatOpt("heartbeat_interval", default=_DEFAULTS.heartbeat_interval, min=0.1,
                 help="Seconds between two heartbeats of an agent."),
    cfg.FloatOpt("task_lease", default=_DEFAULTS.task_lease, min=1,
                 help="Seconds without a word of its agent after which the claim of a task is over."),
    cfg.FloatOpt("gather_timeout", default=_DEFAULTS.gather_timeout, min=1,
                 help="Seconds for the tasks of a run to be claimed, and for a consistency group to gather."),
    cfg.FloatOpt("freeze_timeout", default=_DEFAULTS.freeze_timeout, min=1,
                 help="Seconds for all members of a consistency group to freeze, and then to snapshot."),
    cfg.FloatOpt("host_patience", default=_DEFAULTS.host_patience, min=0,
                 help="Seconds after the end of its lease after which a task of a host that is gone has failed."),
    cfg.IntOpt("max_claims", default=_DEFAULTS.max_claims, min=1,
               help="How often a task that any agent can do is claimed before it has failed."),
    cfg.FloatOpt("trash_seconds", default=_DEFAULTS.trash_seconds, min=0,
                 help="Seconds that restore points stay in the vault after they were deleted."),
    cfg.FloatOpt("keep_failed", default=_DEFAULTS.keep_failed, min=0,
                 help="Seconds that runs which failed or were cancelled are kept for whoever wants to know why."),
    cfg.FloatOpt("retention_interval", default=_DEFAULTS.retention_interval, min=1,
                 help="Seconds between two looks at all jobs for restore points that are kept no longer (besides the "
                 "one after each backup)."),
    cfg.FloatOpt("collect_interval", default=_DEFAULTS.collect_interval, min=1,
                 help="Seconds between two collections of what no restore point of a vault needs any more."),
    cfg.FloatOpt("verify_every", default=_DEFAULTS.verify_every, min=0,
                 help="Seconds after which the restore points of a job are verified again: that all of it is there, "
                 "and some of the data is read. 0: never, only when somebody asks for it."),
    cfg.IntOpt("verify_percent", default=_DEFAULTS.verify_percent, min=0, max=100,
               help="How many hundredths of the data are read each time, others every time; 0: none, 100: all."),
    cfg.IntOpt("verify_bandwidth", default=_DEFAULTS.verify_bandwidth, min=0,
               help="Bytes per second that a verification reads, whoever asked for it; 0: any number."),
    cfg.FloatOpt("test_restore_every", default=_DEFAULTS.test_restore_every, min=0,
                 help="Seconds after which the newest restore point of a job is tested again, where the job says "
                 "nothing: its VMs are booted on a host where they reach nobody. 0: never, only where a job or "
                 "somebody asks for it."),
    cfg.IntOpt("test_restore_timeout", default=_DEFAULTS.test_restore_timeout, min=10, max=86400,
               help="Seconds that each of these VMs has to come up, where nobody says."),
    cfg.IntOpt("max_test_restores", default=_DEFAULTS.max_test_restores, min=0,
               help="Test restores at once, of all projects. How many VMs a host boots at once, its agent says. 0: "
               "none are begun."),
    cfg.FloatOpt("forget_services", default=_DEFAULTS.forget_services, min=86400,
                 help="Seconds after which a process that is silent is forgotten."),
    cfg.StrOpt("metrics_address", default=_DEFAULTS.metrics_address,
               help="Address of the metrics for Prometheus: http://ADDRESS:PORT/metrics."),
    cfg.PortOpt("metrics_port", default=_DEFAULTS.metrics_port, help="Port of the metrics; 0: none."),
    cfg.StrOpt("spool_dir", default="",
               help="Where maps are put together, up to 0.5 GB for each TB of a disk, for a moment. Unset: the "
               "system's temporary folder."),
    cfg.IntOpt("retries", default=_DEFAULTS.retries, min=0,
               help="Retries of a failed run, where its job says nothing."),
    cfg.FloatOpt("retry_delay", default=_DEFAULTS.retry_delay, min=0,
                 help="Seconds before the first retry, where the job says nothing. Each further one waits twice as "
                 "long, up to an hour."),
]  # fmt: skip


def load(path: Path | None = None) -> SchedulerSettings:
    """From a file (default: /etc/raksha/raksha.conf if it is there) and `OS_SCHEDULER__*` variables.

    Raises `SettingsWrong`.
    """
    file = path or (STANDARD_FILE if STANDARD_FILE.exists() else None)
    conf = cfg.ConfigOpts()
    conf.register_opts(OPTIONS, group="scheduler")
    try:
        conf([], project="raksha", default_config_files=[str(file)] if file else [], default_config_dirs=[])
        found = {option.name: conf.scheduler[option.name] for option in OPTIONS}
    except (cfg.Error, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=str(error)) from error
    found["name"] = found["name"] or socket.gethostname()
    return SchedulerSettings(**found)
