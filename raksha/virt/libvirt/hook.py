"""Installs `hook_script` as libvirt's `qemu` hook: libvirt runs it before every start of a VM, and heeds its refusal.

It goes into `qemu.d`, beside hooks of others (libvirt 6.5 and later), or becomes the `qemu` hook where there is none. A
hook of somebody else is never touched. libvirt looks for hooks when its daemon starts.
"""

from __future__ import annotations

from pathlib import Path

from raksha.errors import HookForeign
from raksha.virt.libvirt import hook_script
from raksha.virt.libvirt.connection import Connection

HOOKS = Path("/etc/libvirt/hooks")

#: libvirt's number of the first version with directories of hooks: 6.5.0
_DIRECTORIES = 6_005_000

_MARK = "Raksha's libvirt hook"


def install_hook(connection: Connection, state_dir: Path, hooks: Path = HOOKS) -> Path:
    """Returns where it is. Raises `HookForeign`, `OSError`."""
    path = hooks / "qemu.d/raksha" if connection.version() >= _DIRECTORIES else hooks / "qemu"
    if path.exists() and not _is_ours(path):
        raise HookForeign(path=path, command=f'{hook_script.__file__} "$@"')
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    text = Path(hook_script.__file__).read_text()
    # Written beside the directory: libvirt runs whatever is executable in it.
    fresh = hooks / ".raksha-hook"
    fresh.write_text(text.replace(hook_script.PLACE, str(state_dir / "journal.sqlite")))
    fresh.chmod(0o755)
    fresh.replace(path)
    return path


def remove_hook(hooks: Path = HOOKS) -> list[str]:
    """Returns what was removed. Raises `OSError`."""
    found = [path for path in (hooks / "qemu.d/raksha", hooks / "qemu") if path.exists() and _is_ours(path)]
    for path in found:
        path.unlink()
    return [str(path) for path in found]


def _is_ours(path: Path) -> bool:
    return _MARK in path.read_text(errors="replace")[:400]
