"""`list_opts`: what oslo.config's own tools ask a program for (the entry point `oslo.config.opts` of setup.py)."""

from __future__ import annotations

from copy import copy

from msgspec import NODEFAULT
from msgspec.structs import fields
from oslo_config import cfg

from raksha.config import Settings
from raksha.config_check import OPTIONS


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option of Raksha by its section, with its default; the options of [host] have theirs in `Settings`."""
    known = {field.name: field.default for field in fields(Settings) if field.default is not NODEFAULT}
    host = [_with_default(option, known.get(option.name)) for option in OPTIONS["host"]]
    return [(section, host if section == "host" else options) for section, options in OPTIONS.items()]


def _with_default(option: cfg.Opt, default: object) -> cfg.Opt:
    if default is None:
        return option
    found = copy(option)
    found.default = default
    return found
