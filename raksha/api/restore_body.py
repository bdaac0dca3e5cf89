"""What a restore is asked for.

    {"target": {"kind": "domain", "start": true}, "vms": [{"id": "…", "disks": ["vda"], "name": "web-again"}]}

    domain     new VMs with new disks           files      the disks as files
    in_place   over the disks of the VM as it is; it must be shut off, which its agent looks at again
    server     new servers of the cloud         volume, image   a new volume, or an image, of each disk

What a new server is not told, it gets as the backed-up one had it. With `volume`, `overwrite` of a VM names volumes of
the project that disks are written over instead: {"vdb": "ID OF A VOLUME"}; they must be available.
`project` names another project of the caller's, and what it needs for that comes in a header (`target_project`).
Paths and hosts are for operators (rule `backupjobruns:restore_anywhere`): others get what the agent is set up for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow
from marshmallow import fields, validate, validates_schema

from raksha.api.bodies import Body, Flag, Items, Text
from raksha.api.job_body import identifier
from raksha.api.nouns import ProjectConverter
from raksha.states import Format
from raksha.tasks import CLOUD_KINDS

KINDS = ("domain", "files", "in_place", *CLOUD_KINDS)
#: what goes with each
_FITTING = {
    "domain": {"directory", "host", "format", "start"},
    "files": {"directory", "host", "format"},
    "in_place": set(),
    "server": {"project", "start", "flavor", "networks", "key_name", "security_groups", "availability_zone",
               "volume_type", "metadata"},
    "volume": {"project", "availability_zone", "volume_type"},
    "image": {"project"},
}  # fmt: skip

#: of a file on a host: what is above it is the operator's affair
_DIRECTORY = r"(?:/(?!\.\.?(?:/|$))[^/\n\t]{1,255})+/?"


class NetworkBody(Body):
    """A network card of a new server."""

    network_id = identifier(required=True)
    fixed_ip = Text(
        least=2, most=45, pattern=r"[0-9a-fA-F:.]+", metadata={"description": "Default: any that is free"}
    )  # fmt: skip


class TargetBody(Body):
    """Where to."""

    kind = fields.String(required=True, validate=validate.OneOf(KINDS))
    project = Text(
        least=1, most=64, pattern=ProjectConverter.regex,
        metadata={"description": "Id of another project of the caller's that it goes into; with X-Raksha-Target-Token"},
    )  # fmt: skip
    directory = Text(
        least=1, most=1024, pattern=_DIRECTORY,
        metadata={"description": "On the host; default: what its agent is set up for. Operators only"},
    )  # fmt: skip
    host = Text(least=1, most=255, metadata={"description": "Whose agent does it; default: any. Operators only"})
    format = fields.Enum(Format, by_value=True, metadata={"description": "Of the disks; default: as the VM had them"})
    start = Flag(metadata={"description": "Let the new VM or server run; default: it is shut off"})
    flavor = Text(least=1, most=255, metadata={"description": "Name or id; default: as it was"})
    networks = Items(
        fields.Nested(NetworkBody), most=32, metadata={"description": "Default: as it had; empty: none"}
    )  # fmt: skip
    key_name = Text(most=255, metadata={"description": "Default: as it had, if that is there; empty: none"})
    security_groups = Items(Text(least=1, most=255), most=32, metadata={"description": "Default: as it had"})
    availability_zone = Text(least=1, most=255)
    volume_type = Text(least=1, most=255, metadata={"description": "Of all volumes; default: as each had"})
    metadata = fields.Dict(
        keys=Text(least=1, most=255), values=Text(most=255), metadata={"description": "Default: as it had"}
    )  # fmt: skip

    @validates_schema
    def check_kind(self, data: Mapping[str, Any], **_: Any) -> None:
        kind = data.get("kind")
        for name in data:
            if kind in KINDS and name not in {"kind", *_FITTING[kind]}:
                raise marshmallow.ValidationError(f"Does not go with {kind}.", name)


class VmWanted(Body):
    """A VM of the restore point."""

    id = identifier(required=True)
    disks = Items(Text(least=1, most=32), most=64, load_default=list, metadata={"description": "Empty: all"})
    name = Text(
        least=1, most=200, pattern=r"[A-Za-z0-9_+@][A-Za-z0-9._+@ -]*",
        metadata={"description": "Of the new VM; default: its old one with -restored-… behind it"},
    )  # fmt: skip
    overwrite = fields.Dict(
        keys=Text(least=1, most=32), values=identifier(), validate=validate.Length(max=64),
        metadata={"description": "Volumes of the project that disks are written over, by disk: what they hold is gone. "
                  "They must be available, large enough, and not be made for more than one server"},
    )  # fmt: skip


class RestoreAsked(Body):
    """A restore, or with `dry_run` what it would do."""

    target = fields.Nested(TargetBody, required=True)
    vms = Items(fields.Nested(VmWanted), least=1, most=1000, metadata={"description": "Default: all, with all disks"})
    dry_run = Flag(load_default=False)

    @validates_schema
    def check_overwritten(self, data: Mapping[str, Any], **_: Any) -> None:
        over = [id for vm in data.get("vms") or () for id in vm.get("overwrite", {}).values()]
        if over and data.get("target", {}).get("kind") != "volume":
            raise marshmallow.ValidationError("Only volumes are written over.", "vms")
        if len(set(over)) != len(over):
            raise marshmallow.ValidationError("A volume is named more than once.", "vms")
