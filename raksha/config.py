"""Settings, read once at the entry point and passed in as one frozen record.

Sources, later ones win: defaults here, `/etc/raksha/raksha.conf` or `--config`, variables `OS_HOST__OPTION`
(`config_file.py`), options of the command line.
Nothing else in Raksha reads a configuration file or an environment variable, except `vault/address.py` for the
usual OS_*/ST_* credentials.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

STANDARD_FILE = Path("/etc/raksha/raksha.conf")


def default_state_dir() -> Path:
    """`/var/lib/raksha` for root, the XDG state directory for others."""
    if os.geteuid() == 0:
        return Path("/var/lib/raksha")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "raksha"


def default_libvirt_uri() -> str:
    return "qemu:///system" if os.geteuid() == 0 else "qemu:///session"


class Settings(Struct, frozen=True):
    """What the engine on one host needs to know."""

    #: connection to the hypervisor
    libvirt_uri: str
    #: journal, locks, sockets and spool files; must survive a reboot
    state_dir: Path
    #: `overlay`, `pull`, or `auto`: the right one for each VM (raksha/virt/libvirt/engines.py)
    engine: str = "auto"
    #: where overlays are made; None: beside the disk they grow on, or `state_dir/overlays` for block devices
    overlay_dir: Path | None = None
    #: where QEMU puts scratch files and sockets of the engine `pull` during a backup; None: `state_dir/scratch`
    scratch_dir: Path | None = None
    #: threads that read, hash, compress and send
    workers: int = 8
    #: seconds a guest may stay frozen; then it is thawed whatever happened
    freeze_deadline: float = 10.0
    #: seconds to wait for an answer of the guest agent
    agent_timeout: int = 5
    #: seconds to wait for a block job before the layer is left for the next run
    commit_timeout: float = 3600.0
    #: free space that an overlay or a scratch file wants: this share of the disk's size ...
    overlay_reserve: float = 0.1
    #: ... but at least and at most so many bytes
    overlay_reserve_min: int = 64 * 1024 * 1024
    overlay_reserve_max: int = 20 * 1024 * 1024 * 1024
    #: bytes free beside an overlay below which the run ends early and the overlay is merged back
    overlay_watermark: int = 32 * 1024 * 1024
    #: hours that an overlay no longer needed stays in the trash; 0: it is deleted at once
    trash_hours: float = 24.0
    #: give the VM's own file the immutable flag while an overlay of ours stands on it (see docs/safety.md)
    fence: bool = False
    #: seconds that one call to a vault may take with all its attempts
    vault_patience: float = 300.0
    #: zstd level; 1 is as good as 3 on disk data and twice as fast
    compression_level: int = 1


def load(path: Path | None = None, **overrides: object) -> Settings:
    """Settings from a file (default: `/etc/raksha/raksha.conf` if it is there), `OS_HOST__*` variables, and
    `overrides` that are not None.

    Raises `SettingsWrong` for a file that cannot be read, and for a wrong value.
    """
    values: dict[str, object] = {"libvirt_uri": default_libvirt_uri(), "state_dir": default_state_dir()}
    file = path or (STANDARD_FILE if STANDARD_FILE.exists() else None)
    if file is not None or any(name.startswith("OS_HOST__") for name in os.environ):
        # a third of the time that a short command takes to start, for nothing where nothing is set
        from raksha.config_file import read

        values |= read(file)
    values |= {name: value for name, value in overrides.items() if value is not None}
    for name in ("state_dir", "overlay_dir", "scratch_dir"):
        if values.get(name) is not None:
            values[name] = Path(str(values[name])).absolute()
    return Settings(**values)  # type: ignore[arg-type]
