"""The names of everything in a vault. See docs/vault-format.md.

Promises: a name made here never leaves its container, whatever was passed in (`BadName` otherwise), and never
depends on anything but its arguments.
"""

from __future__ import annotations

import re

from raksha.errors import BadName
from raksha.types import ResourceKey
from raksha.vault.store import BACKUPS

VAULT = f"{BACKUPS}/vault.json"
KEYS = f"{BACKUPS}/keys/"
EPOCHS = f"{BACKUPS}/epochs/"
RUN_FILE = "run.json"
VM_FILE = "VMMetadata"
METADATA_FILE = "BackupMetadata"
IMAGE_FILE = "Backup"
MAP_PREFIX = "BackupMap-"

#: first path elements that are no job
_RESERVED = frozenset({"keys", "epochs", "vault.json"})
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def checked(name: str, noun: str) -> str:
    """`name`, if it may be one element of a path. Raises `BadName`."""
    if not _SAFE.fullmatch(name):
        raise BadName(name=name, noun=noun, detail="letters, digits, '.', '_' and '-' only, at most 128")
    return name


def key(key_id: str) -> str:
    return KEYS + checked(key_id, "a key")


def epoch(number: int) -> str:
    """Fixed width, so that names sort as numbers."""
    return f"{EPOCHS}{number:012d}"


def run_folder(backupjob: str, backupjobrun: str) -> str:
    if backupjob in _RESERVED:
        raise BadName(name=backupjob, noun="a backup job", detail="the name is taken by the vault")
    return f"{BACKUPS}/{checked(backupjob, 'a backup job')}/{checked(backupjobrun, 'a run')}"


def run(backupjob: str, backupjobrun: str) -> str:
    return f"{run_folder(backupjob, backupjobrun)}/{RUN_FILE}"


def vm_folder(backupjob: str, backupjobrun: str, vm: str) -> str:
    return f"{run_folder(backupjob, backupjobrun)}/{checked(vm, 'a VM')}"


def vm_metadata(backupjob: str, backupjobrun: str, vm: str) -> str:
    return f"{vm_folder(backupjob, backupjobrun, vm)}/{VM_FILE}"


def folder(resource: ResourceKey) -> str:
    """Of one stored disk copy."""
    base = vm_folder(resource.backupjob, resource.backupjobrun, resource.vm)
    return f"{base}/{checked(resource.resource, 'a disk')}"


def metadata(resource: ResourceKey) -> str:
    return f"{folder(resource)}/{METADATA_FILE}"


def image(resource: ResourceKey) -> str:
    return f"{folder(resource)}/{IMAGE_FILE}"


def map_object(resource: ResourceKey, digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise BadName(name=digest, noun="a map", detail="64 hexadecimal digits")
    return f"{folder(resource)}/{MAP_PREFIX}{digest}"


def relative_image(child: ResourceKey, parent: ResourceKey) -> str:
    """Path from the folder of the child's `Backup` to the parent's: it holds wherever the tree is copied."""
    if child.backupjob != parent.backupjob:
        raise BadName(name=parent.backupjob, noun="a parent's job", detail="parent and child are in one job")
    return f"../../../{parent.backupjobrun}/{parent.vm}/{parent.resource}/{IMAGE_FILE}"
