"""`[database]` of the configuration. The names are those that operators know from oslo.db."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from oslo_config import cfg

from raksha.config import default_state_dir
from raksha.errors import SettingsWrong

STANDARD_FILE = Path("/etc/raksha/raksha.conf")


class DatabaseSettings(Struct, frozen=True):
    """Where the database is, and how its connections are used."""

    #: URL of SQLAlchemy: `sqlite:////path`, `mysql+pymysql://…`, `postgresql+psycopg://…`
    connection: str
    #: connections kept open, and how many more for a moment
    max_pool_size: int = 5
    max_overflow: int = 50
    #: seconds to wait for one of them
    pool_timeout: float = 30.0
    #: seconds after which a connection is replaced
    connection_recycle_time: int = 3600
    #: seconds to wait for a lock
    lock_timeout: float = 20.0
    #: how often a transaction is tried before it is given up
    max_attempts: int = 20


_DEFAULTS = DatabaseSettings(connection="")

OPTIONS = [
    cfg.StrOpt("connection", secret=True,
               help="The service's database: mysql+pymysql://USER:PASSWORD@HOST/raksha, "
               "postgresql+psycopg://USER:PASSWORD@HOST/raksha, or sqlite:////PATH. Unset: raksha.db in the state "
               "directory. Also: the variable OS_DATABASE__CONNECTION."),
    cfg.IntOpt("max_pool_size", default=_DEFAULTS.max_pool_size, min=1, help="Connections that a process keeps open."),
    cfg.IntOpt("max_overflow", default=_DEFAULTS.max_overflow, min=0,
               help="How many more connections it may open for a moment."),
    cfg.FloatOpt("pool_timeout", default=_DEFAULTS.pool_timeout, min=0, help="Seconds to wait for a connection."),
    cfg.IntOpt("connection_recycle_time", default=_DEFAULTS.connection_recycle_time, min=-1,
               help="Seconds after which a connection is replaced; -1: never. Less than the server's wait_timeout."),
    cfg.FloatOpt("lock_timeout", default=_DEFAULTS.lock_timeout, min=1,
                 help="Seconds to wait for a lock that another transaction holds."),
    cfg.IntOpt("max_attempts", default=_DEFAULTS.max_attempts, min=1,
               help="How often a transaction is tried that the database gave up (a deadlock, a lock, a lost "
               "connection)."),
]  # fmt: skip


def load(path: Path | None = None, connection: str | None = None) -> DatabaseSettings:
    """From a file (default: /etc/raksha/raksha.conf if it is there), `OS_DATABASE__*` variables, and `connection`.

    Raises `SettingsWrong`.
    """
    file = path or (STANDARD_FILE if STANDARD_FILE.exists() else None)
    conf = cfg.ConfigOpts()
    conf.register_opts(OPTIONS, group="database")
    try:
        conf([], project="raksha", default_config_files=[str(file)] if file else [], default_config_dirs=[])
        found = {option.name: conf.database[option.name] for option in OPTIONS}
    except (cfg.Error, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=str(error)) from error
    found["connection"] = connection or found["connection"] or f"sqlite:///{default_state_dir() / 'raksha.db'}"
    return DatabaseSettings(**found)
