"""`[api]` of the configuration: how the REST API listens, who may use it, and how much anybody may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct
from oslo_config import cfg

from raksha.errors import SettingsWrong

STANDARD_FILE = Path("/etc/raksha/raksha.conf")


class Limits(Struct, frozen=True):
    """What one request or one project may ask for. Tenants read them at `limits`."""

    #: bytes of a request's body
    max_body_bytes: int = 1024 * 1024
    #: entries of one page of a list
    max_page_size: int = 1000
    #: backup jobs of one project
    max_jobs: int = 1000
    #: VMs of one backup job
    max_vms_per_job: int = 100
    #: seconds between two runs of a schedule
    min_schedule_interval: int = 300
    #: fire times in one preview of a schedule
    max_preview_times: int = 100
    #: restore points of one project; -1: any number
    max_runs: int = -1
    #: bytes that its restore points refer to, each for itself; at that many it makes no more; -1: any number
    max_stored_bytes: int = -1
    #: runs of one project that have not ended, above which it may start none by hand
    max_runs_under_way: int = 100
    #: restores of one project that have not ended
    max_restores_under_way: int = 20


class ApiSettings(Struct, frozen=True):
    """What the API needs to know."""

    #: where gunicorn listens: HOST:PORT or unix:PATH
    bind: str = "127.0.0.1:9797"
    #: processes, and threads of each
    workers: int = 1
    threads: int = 8
    #: certificate and key; None: plain HTTP, for loopback or behind a proxy
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    #: URL under which clients reach the API, for links; None: the Host of each request
    public_endpoint: str | None = None
    #: `http_basic` or `keystone`
    auth_strategy: str = "http_basic"
    #: users of `http_basic`
    users_file: Path = Path("/etc/raksha/users")
    #: rules that differ from the defaults; None: there are none
    policy_file: Path | None = None
    #: who may see `/metrics`: `operators`, `everybody`, `nobody`
    metrics: str = "operators"
    limits: Limits = Limits()
    # of [scheduler], for the API tells and lets do what the schedulers will
    #: seconds since its last heartbeat after which a process counts as gone
    agent_timeout: float = 60.0
    #: runs of one project at once, where it has no limit of its own
    max_runs_per_project: int = 10
    #: seconds that runs which failed are kept
    keep_failed: float = 30 * 86400.0
    #: whose VMs are those that belong to no project; empty: nobody's
    unowned_vms_project: str = ""
    #: where there is a Nova: whether VMs that it does not have are a project's because agents say so
    libvirt_vms: bool = False


_API, _LIMITS = ApiSettings(), Limits()

OPTIONS = [
    cfg.StrOpt("bind", default=_API.bind,
               help="Where the REST API listens: HOST:PORT or unix:PATH. Plain HTTP unless tls_certificate is set: "
               "keep that on loopback, or behind a proxy that speaks TLS."),
    cfg.IntOpt("workers", default=_API.workers, min=1, max=256, help="Processes."),
    cfg.IntOpt("threads", default=_API.threads, min=1, max=256, help="Threads of each process."),
    cfg.StrOpt("tls_certificate", help="Certificate in PEM. It goes together with tls_key. Unset: plain HTTP."),
    cfg.StrOpt("tls_key", help="Key of the certificate, in PEM."),
    cfg.StrOpt("public_endpoint", regex=r"^(https?://[^\s/?#]+[^\s?#]*)?$",
               help="URL under which clients reach the API, for links in answers. Unset: the Host that each request "
               "names."),
    cfg.StrOpt("auth_strategy", default=_API.auth_strategy, choices=["http_basic", "keystone"],
               help="Who says who a caller is: http_basic (a file of users) or keystone (see [keystone_authtoken])."),
    cfg.StrOpt("users_file", default=str(_API.users_file),
               help="Users of http_basic, one a line: name:bcrypt hash:project:roles. Of mode 0600, or the API does "
               "not start."),
    cfg.StrOpt("policy_file", help="Rules that differ from the defaults: see policy.yaml.sample."),
    cfg.StrOpt("metrics", default=_API.metrics, choices=["operators", "everybody", "nobody"],
               help="Who may see /metrics: operators (who log in, rule metrics:show), everybody, nobody."),
    cfg.IntOpt("max_body_bytes", default=_LIMITS.max_body_bytes, min=1024, help="Bytes of a request's body."),
    cfg.IntOpt("max_page_size", default=_LIMITS.max_page_size, min=1, max=1000, help="Entries of one page of a list."),
    cfg.IntOpt("max_jobs", default=_LIMITS.max_jobs, min=0, help="Backup jobs of one project."),
    cfg.IntOpt("max_vms_per_job", default=_LIMITS.max_vms_per_job, min=1, help="VMs of one backup job."),
    cfg.IntOpt("min_schedule_interval", default=_LIMITS.min_schedule_interval, min=60,
               help="Seconds between two runs of a schedule."),
    cfg.IntOpt("max_preview_times", default=_LIMITS.max_preview_times, min=1, max=1000,
               help="Fire times in one preview of a schedule."),
    cfg.IntOpt("max_runs", default=_LIMITS.max_runs, min=-1,
               help="Restore points of one project: above that no run starts by hand, and those of schedules wait. -1: "
               "any number. A project can have a limit of its own. Schedulers read this, too."),
    cfg.IntOpt("max_stored_bytes", default=_LIMITS.max_stored_bytes, min=-1,
               help="Bytes that the restore points of one project refer to, each for itself. As with max_runs, above "
               "that no run starts by hand, and those of schedules wait; -1: any number; a project can have a limit of "
               "its own; schedulers read this, too."),
    cfg.IntOpt("max_runs_under_way", default=_LIMITS.max_runs_under_way, min=0,
               help="Runs of one project that have not ended; above that it starts no more by hand."),
    cfg.IntOpt("max_restores_under_way", default=_LIMITS.max_restores_under_way, min=0,
               help="Restores of one project that have not ended; above that it starts no more."),
]  # fmt: skip


def load(path: Path | None = None) -> ApiSettings:
    """From a file (default: /etc/raksha/raksha.conf if it is there) and `OS_API__*` variables.

    Raises `SettingsWrong`.
    """
    file = path or (STANDARD_FILE if STANDARD_FILE.exists() else None)
    conf = cfg.ConfigOpts()
    conf.register_opts(OPTIONS, group="api")
    try:
        conf([], project="raksha", default_config_files=[str(file)] if file else [], default_config_dirs=[])
        found: dict[str, Any] = {option.name: conf.api[option.name] for option in OPTIONS}
    except (cfg.Error, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=str(error)) from error
    limits = Limits(**{name: found.pop(name) for name in Limits.__struct_fields__})
    found["public_endpoint"] = found["public_endpoint"] or None
    for name in ("tls_certificate", "tls_key", "users_file", "policy_file"):
        found[name] = Path(found[name]).absolute() if found[name] else None
    if (found["tls_certificate"] is None) != (found["tls_key"] is None):
        raise SettingsWrong(detail="[api] tls_certificate and tls_key go together")
    return ApiSettings(**found, limits=limits)
