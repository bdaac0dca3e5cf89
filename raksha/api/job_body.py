"""What a job says: the fields that clients write, and how they become columns.

A PUT changes the fields that it names; null takes a value away. `schedule`, `retention` and the other documents are
replaced whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow
from marshmallow import fields, validate, validates_schema
from msgspec.structs import replace

from raksha.api.bodies import Body, Flag, Items, Text, Whole, Words
from raksha.api.nouns import IdConverter
from raksha.api.schedules import ScheduleBody, schedule
from raksha.db import points, schedules
from raksha.retention import Retention
from raksha.retention import check as check_retention
from raksha.schedule import check as check_schedule
from raksha.states import Quiesce, Source

#: bytes per second: below it no run would ever end
LEAST_BANDWIDTH = 65536
#: bytes of all keys and values, as Swift takes them with each object
_MOST_METADATA = 3000
#: points of one rule
_MOST_KEPT = 10000
_NAME = r"[^\n\t]*"

#: as they stand in the row
_PLAIN = ("name", "description", "quiesce", "engine", "consistency_group", "on_vm_failure", "max_parallel_disks",
          "bandwidth_limit", "placement", "vm_selector", "vault_service_id")  # fmt: skip

_RENAMED = {"retry": "retry_policy", "metadata": "hints"}


#: seconds between two test restores of a job, and that a VM has to come up
LEAST_TEST = 60
LEAST_TIMEOUT = 10
MOST_TIMEOUT = 86400


def identifier(**more: Any) -> Text:
    """An id in a body."""
    return Text(most=36, pattern=IdConverter.regex, **more)


def _force(what: str) -> Flag:
    return Flag(load_default=False, metadata={"description": f"{what}: its backup holds what a power cut would leave"})


class VmBody(Body):
    """A VM that a job names."""

    id = identifier(required=True)
    excluded_disks = Items(
        Text(least=1, most=32, pattern="[A-Za-z0-9_-]+"), most=64, load_default=list,
        metadata={"description": "Disks that are left out, as the hypervisor names them: vdb"},
    )  # fmt: skip

    source = fields.Enum(
        Source, by_value=True, load_default=Source.HYPERVISOR,
        validate=validate.OneOf([Source.HYPERVISOR, Source.STORAGE]),
        metadata={"description": "Where its disks are taken from. storage: its volumes, by any agent, never frozen"},
    )  # fmt: skip
    force = _force("With source storage: also while it runs")


class VolumeBody(Body):
    """A volume of the cloud that a job names by itself, attached or not."""

    id = identifier(required=True)
    force = _force("Also while it is in use")


class SelectorBody(Body):
    """VMs are looked for at each run: those with all of these tags and all of this metadata."""

    tags = Items(Text(least=1, most=255), most=64)
    metadata = Words(most=64)

    @validates_schema
    def says_something(self, data: Mapping[str, Any], **_: Any) -> None:
        if not data.get("tags") and not data.get("metadata"):
            raise marshmallow.ValidationError("It names neither tags nor metadata.")


def _kept() -> Whole:
    return Whole(most=_MOST_KEPT)


class RetentionBody(Body):
    """How many restore points stay: docs/schedules.md. At least one number above 0."""

    keep_last = _kept()
    hourly = _kept()
    daily = _kept()
    weekly = _kept()
    monthly = _kept()
    yearly = _kept()
    zone = Text(least=1, most=64, metadata={"example": "Europe/Paris", "description": "Whose days; default UTC"})


class RetryBody(Body):
    """What happens after a run has failed."""

    retries = Whole(most=20, metadata={"description": "Further attempts; default: the operator's"})
    delay = Whole(most=86400, metadata={"description": "Seconds before the first one, doubled for each further one"})


class PlacementBody(Body):
    """Where work goes that any agent can do. Empty: anywhere."""

    hosts = Items(Text(least=1, most=255), most=100)
    zones = Items(Text(least=1, most=255), most=100)


class RestoreTestBody(Body):
    """Whether restore points of the job come up when they are booted. What it does not say, the operator does."""

    every = Whole(
        most=366 * 86400, metadata={"description": "Seconds between two, of the newest restore point; 0: never"}
    )
    marker = Text(
        least=1, most=255,
        metadata={"description": "On its serial console, by which a VM says that it is up; default: its guest agent "
                  "answers"},
    )  # fmt: skip
    timeout = Whole(least=LEAST_TIMEOUT, most=MOST_TIMEOUT, metadata={"description": "Seconds that each VM has"})

    @validates_schema
    def check_every(self, data: Mapping[str, Any], **_: Any) -> None:
        if 0 < data.get("every", 0) < LEAST_TEST:
            raise marshmallow.ValidationError(f"0, or not less than {LEAST_TEST}.", "every")


class JobFields(Body):
    """All of them."""

    name = Text(least=1, most=255, pattern=_NAME)
    description = Text(most=4000)
    enabled = Flag(metadata={"description": "Its schedule fires; false: paused. True ends a suspension"})
    vms = Items(fields.Nested(VmBody), most=1000)
    volumes = Items(fields.Nested(VolumeBody), most=1000)
    vm_selector = fields.Nested(SelectorBody, allow_none=True)
    schedule = fields.Nested(ScheduleBody, allow_none=True, metadata={"description": "null: by hand only"})
    quiesce = fields.Enum(Quiesce, by_value=True)
    engine = fields.String(validate=validate.OneOf(["auto", "overlay", "pull"]))
    consistency_group = Flag(metadata={"description": "The VMs of a run are frozen at one instant"})
    on_vm_failure = fields.String(validate=validate.OneOf(["abort", "degrade"]))
    retention = fields.Nested(RetentionBody, allow_none=True, metadata={"description": "null: everything stays"})
    retry = fields.Nested(RetryBody, allow_none=True)
    max_parallel_disks = Whole(least=1, most=64, allow_none=True)
    bandwidth_limit = Whole(
        least=LEAST_BANDWIDTH, allow_none=True, metadata={"description": "Bytes per second of each VM"}
    )
    placement = fields.Nested(PlacementBody, allow_none=True)
    test_restore = fields.Nested(
        RestoreTestBody, allow_none=True, metadata={"description": "null: as the operator says"}
    )
    metadata = Words(most=32, metadata={"description": "Carried to the objects in the vault"})
    vault_service_id = identifier(allow_none=True, metadata={"description": "Of `vaults`; null: the default one"})

    @validates_schema
    def check_vms(self, data: Mapping[str, Any], **_: Any) -> None:
        for noun, called in (("vms", "VM"), ("volumes", "volume")):
            ids = [each["id"] for each in data.get(noun, ())]
            if len(set(ids)) != len(ids):
                raise marshmallow.ValidationError(f"A {called} is named more than once.", noun)
        if {vm["id"] for vm in data.get("vms", ())} & {each["id"] for each in data.get("volumes", ())}:
            raise marshmallow.ValidationError("One of them is named as a VM, too.", "volumes")
        for number, vm in enumerate(data.get("vms", ())):
            if vm["force"] and vm["source"] == Source.HYPERVISOR:
                raise marshmallow.ValidationError("It goes with source storage.", f"vms.{number}.force")

    @validates_schema
    def check_metadata(self, data: Mapping[str, Any], **_: Any) -> None:
        found = data.get("metadata", {})
        if not all(key.isascii() and key.replace("-", "").replace("_", "").isalnum() for key in found):
            raise marshmallow.ValidationError("Keys are of A-Z a-z 0-9 - _.", "metadata")
        if any("\n" in value or "\t" in value for value in found.values()):
            raise marshmallow.ValidationError("Values are of one line.", "metadata")
        if sum(len(key) + len(value.encode()) for key, value in found.items()) > _MOST_METADATA:
            raise marshmallow.ValidationError(f"All together are longer than {_MOST_METADATA} bytes.", "metadata")


class JobChanged(JobFields):
    """What a PUT changes; the rest stays."""


class JobWritten(JobFields):
    """A new job. It has VMs, volumes, a selector, or several of them."""

    name = Text(least=1, most=255, pattern=_NAME, required=True)


def columns(body: Mapping[str, Any], job_id: str, now: int, least_seconds: int) -> dict[str, Any]:
    """Columns of a job for the fields that a body has; without `vms`, `volumes` and `enabled`. `now`: epoch seconds, by
    the database.

    Raises `RequestInvalid`, and what is wrong with a schedule or a retention.
    """
    values = {name: body[name] for name in _PLAIN if name in body}
    values |= {column: body[name] for name, column in _RENAMED.items() if name in body}
    if "schedule" in body:
        wanted = None if body["schedule"] is None else replace(schedule(body["schedule"]), seed=job_id)
        if wanted is not None:
            check_schedule(wanted, now, least_seconds)
        values |= schedules.columns(wanted, job_id, now)
    if "test_restore" in body:
        wanted_test = body["test_restore"] or {}
        values |= {f"test_{name}": wanted_test.get(name) for name in ("every", "marker", "timeout")}
    if "retention" in body:
        values["retention"] = points.document(retention(body["retention"]))
    return values


def retention(body: Mapping[str, Any] | None) -> Retention | None:
    """Of what `RetentionBody` has read. Raises `ZoneUnknown`, `RetentionInvalid`."""
    if body is None:
        return None
    found = Retention(**body)
    check_retention(found)
    return found
