"""The configuration file and `OS_HOST__*` variables, read by oslo.config: which settings they may hold, and of what
kind and range those are."""

from __future__ import annotations

from pathlib import Path

from oslo_config import cfg

from raksha.errors import SettingsWrong

OPTIONS = [
    cfg.StrOpt("libvirt_uri", help="Connection to the hypervisor."),
    cfg.StrOpt("state_dir", help="Directory of the journal, locks, sockets and spool files."),
    cfg.StrOpt("engine", choices=["auto", "overlay", "pull"], help="How VMs are captured."),
    cfg.StrOpt("overlay_dir", help="Directory of overlays; unset: beside the disk they grow on."),
    cfg.StrOpt("scratch_dir", help="Directory of scratch files and sockets during a backup by the engine pull."),
    cfg.IntOpt("workers", min=1, max=64, help="Threads that read, hash, compress and send."),
    cfg.FloatOpt("freeze_deadline", min=1, max=60, help="Seconds a guest may stay frozen."),
    cfg.IntOpt("agent_timeout", min=1, max=60, help="Seconds to wait for an answer of the guest agent."),
    cfg.FloatOpt("commit_timeout", min=1, help="Seconds to wait for a block job."),
    cfg.FloatOpt("overlay_reserve", min=0, max=1, help="Free space an overlay wants, as a share of the disk."),
    cfg.IntOpt("overlay_reserve_min", min=0, help="The least of that, in bytes."),
    cfg.IntOpt("overlay_reserve_max", min=0, help="The most of that, in bytes."),
    cfg.IntOpt("overlay_watermark", min=0, help="Bytes free below which a run ends early."),
    cfg.FloatOpt("trash_hours", min=0, help="Hours that an overlay no longer needed is kept."),
    cfg.BoolOpt("fence", help="Make the file below an overlay immutable."),
    cfg.FloatOpt("vault_patience", min=0, help="Seconds that one call to a vault may take with all its attempts."),
    cfg.IntOpt("compression_level", min=1, max=19, help="zstd level."),
]


def read(path: Path | None) -> dict[str, object]:
    """What a file (if there is one) and the variables set, by the names of `raksha.config.Settings`.

    Raises `SettingsWrong`.
    """
    conf = cfg.ConfigOpts()
    conf.register_opts(OPTIONS, group="host")
    try:
        conf([], project="raksha", default_config_files=[str(path)] if path else [], default_config_dirs=[])
        found = {option.name: conf.host[option.name] for option in OPTIONS}
    except (cfg.Error, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=str(error)) from error
    return {name: value for name, value in found.items() if value is not None}
