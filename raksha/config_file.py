"""The configuration file and `OS_HOST__*` variables, read by oslo.config: which settings they may hold, and of what
kind and range those are."""

from __future__ import annotations

from pathlib import Path

from oslo_config import cfg

from raksha.errors import SettingsWrong

OPTIONS = [
    cfg.StrOpt("libvirt_uri", sample_default="qemu:///system",
               help="Connection to the hypervisor: qemu:///system for root, qemu:///session for others."),
    cfg.StrOpt("state_dir", sample_default="/var/lib/raksha",
               help="Journal, locks, sockets and temporary files. It must survive a reboot: the journal knows which "
               "overlays are ours."),
    cfg.StrOpt("engine", choices=["auto", "overlay", "pull"],
               help="How VMs are captured: overlay, pull, or auto: overlay where only libvirt manages a VM, pull where "
               "Nova does."),
    cfg.StrOpt("overlay_dir",
               help="Where overlays are made. Unset: beside the disk they grow on, or <state_dir>/overlays for block "
               "devices. QEMU must be able to read and write there."),
    cfg.StrOpt("scratch_dir",
               help="Where the engine `pull` has QEMU keep what guests overwrite during a backup (scratch files), and "
               "sockets. Unset: <state_dir>/scratch. A short path (sockets) on a local disk; QEMU must be able to get "
               "there."),
    cfg.IntOpt("workers", min=1, max=64,
               help="Threads that read, hash, compress and send. About two per core that backups may use."),
    cfg.FloatOpt("freeze_deadline", min=1, max=60,
                 help="Seconds a guest's file systems may stay frozen. Then it is thawed, whatever happened, also if "
                 "Raksha was killed."),
    cfg.IntOpt("agent_timeout", min=1, max=60, help="Seconds to wait for an answer of the guest agent."),
    cfg.FloatOpt("commit_timeout", min=1,
                 help="Seconds to wait until an older overlay is merged. After that it stays for the next run: nothing "
                 "is lost."),
    cfg.FloatOpt("overlay_reserve", min=0, max=1,
                 help="Free space that an overlay or a scratch file wants where it is made, as a share of the disk's "
                 "size. A backup that finds less is refused before anything is changed."),
    cfg.IntOpt("overlay_reserve_min", min=0, help="The least of that space, in bytes, however small the disk is."),
    cfg.IntOpt("overlay_reserve_max", min=0, help="The most of that space, in bytes, however large the disk is."),
    cfg.IntOpt("overlay_watermark", min=0,
               help="When less than this is free (bytes) where an overlay grows, the backup is given up and the "
               "overlay merged back, so that the VM need not stop for want of space."),
    cfg.FloatOpt("trash_hours", min=0,
                 help="An overlay that was merged is no longer needed. It is moved to `.raksha-trash` beside it for so "
                 "many hours, in case somebody misses it; it goes earlier when its space is needed. 0: it is deleted "
                 "at once."),
    cfg.BoolOpt("fence",
                help="Give a VM's own file the immutable flag (chattr +i) while an overlay of ours stands on it, so "
                "that nothing can start or write below the overlay. The owner meets the flag as well: docs/safety.md "
                "says where. `raksha local release` lifts it."),
    cfg.FloatOpt("vault_patience", min=0,
                 help="Seconds that one call to a vault may take with all its attempts, before the command is given "
                 "up."),
    cfg.IntOpt("compression_level", min=1, max=19,
               help="zstd level. 1 gives nearly the ratio of 3 on disk data, at twice the speed."),
]  # fmt: skip


def read(path: Path | None) -> dict[str, object]:
    """What a file (if there is one) and the variables set, by the names of `raksha.config.Settings`.
    What is left empty is not set.

    Raises `SettingsWrong`.
    """
    conf = cfg.ConfigOpts()
    conf.register_opts(OPTIONS, group="host")
    try:
        conf([], project="raksha", default_config_files=[str(path)] if path else [], default_config_dirs=[])
        found = {option.name: conf.host[option.name] for option in OPTIONS}
    except (cfg.Error, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=str(error)) from error
    return {name: value for name, value in found.items() if value not in (None, "")}
