"""Everything of a VM that is not on its disks: definitions, UEFI variables, state of an emulated TPM."""

from __future__ import annotations

import io
import os
from pathlib import Path

from raksha.errors import CaptureFailed
from raksha.virt.capture import Machine
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Domain

#: bytes; UEFI variables are some 528 KiB, TPM state less
_LIMIT = 64 * 1024 * 1024

#: where libvirt keeps the state of emulated TPMs: of the system, of a user's session
_TPM_SYSTEM = Path("/var/lib/libvirt/swtpm")


def read_machine(guest: Guest, domain_xml: str, domain: Domain, power: str) -> Machine:
    """Raises `CaptureFailed` for a file that is named but cannot be read: without it the VM may not boot."""
    tpm = _tpm_directory(guest.uuid) if domain.tpm else None
    return Machine(
        uuid=guest.uuid,
        name=guest.name,
        domain_xml=domain_xml,
        live_xml=guest.live_xml() if guest.is_active() else None,
        power=power,
        nvram=_read(guest, domain.nvram) if domain.nvram else None,
        files={"tpm.tar": _tar(guest, tpm)} if tpm else {},
    )


def _read(guest: Guest, path: str) -> bytes | None:
    """None: the VM was never started, so the file is not there yet."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CaptureFailed(vm=guest.name, detail=f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _LIMIT:
        raise CaptureFailed(vm=guest.name, detail=f"{path} is larger than {_LIMIT} bytes")
    return content


def _tpm_directory(uuid: str) -> Path | None:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return next((each for base in (_TPM_SYSTEM, config / "libvirt/qemu/swtpm") if (each := base / uuid).is_dir()), None)


def _tar(guest: Guest, directory: Path) -> bytes:
    import tarfile  # few VMs have a TPM

    buffer = io.BytesIO()
    try:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(directory, arcname=".")
    except OSError as error:
        raise CaptureFailed(vm=guest.name, detail=f"the TPM state cannot be read: {error}") from error
    return buffer.getvalue()
