"""`[notifications]` of the configuration: whether others are told what becomes of jobs and restores, and where."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from oslo_config import cfg, types

from raksha.errors import SettingsWrong

STANDARD_FILE = Path("/etc/raksha/raksha.conf")


class NotificationSettings(Struct, frozen=True):
    """The API reads `enabled` alone: schedulers send."""

    enabled: bool = False
    #: URL of oslo.messaging; empty: that of `[scheduler]`
    transport_url: str = ""
    #: each makes the queues TOPIC.info and TOPIC.error
    topics: tuple[str, ...] = ("notifications",)
    #: seconds that those which cannot be sent are kept
    keep: float = 7 * 86400.0


_DEFAULTS = NotificationSettings()

OPTIONS = [
    cfg.BoolOpt("enabled", default=_DEFAULTS.enabled,
                help="Whether APIs and schedulers note what becomes of jobs, runs and restores, for schedulers to "
                "send. The same for all of them. docs/notifications.md has what is sent."),
    cfg.StrOpt("transport_url", default="", secret=True,
               help="The message bus that notifications go to: rabbit://USER:PASSWORD@HOST:5672/. Unset: "
               "transport_url of [scheduler]."),
    cfg.ListOpt("topics", default=list(_DEFAULTS.topics),
                item_type=types.String(regex=r"^[A-Za-z0-9_.-]{1,200}$"),
                help="Notifications go to the queues TOPIC.info and TOPIC.error of each topic."),
    cfg.FloatOpt("keep", default=_DEFAULTS.keep, min=60,
                 help="Seconds after which a notification that could not be sent is dropped."),
]  # fmt: skip


def load(path: Path | None = None) -> NotificationSettings:
    """From a file (default: /etc/raksha/raksha.conf if it is there) and `OS_NOTIFICATIONS__*` variables.

    Raises `SettingsWrong`.
    """
    file = path or (STANDARD_FILE if STANDARD_FILE.exists() else None)
    conf = cfg.ConfigOpts()
    conf.register_opts(OPTIONS, group="notifications")
    try:
        conf([], project="raksha", default_config_files=[str(file)] if file else [], default_config_dirs=[])
        found = {option.name: conf.notifications[option.name] for option in OPTIONS}
    except (cfg.Error, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=str(error)) from error
    found["topics"] = tuple(found["topics"])
    if found["enabled"] and not found["topics"]:
        raise SettingsWrong(detail="[notifications] topics: there is none to send to")
    return NotificationSettings(**found)
