"""`vaults`: where a project's jobs may store. Addresses and credentials are the operator's affair."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.api.services import services
from raksha.db import vaults

NOUN = Noun("vaults", "/v1/<project:tenant_id>/vaults", "Where the project's jobs may store.")


class VaultShown(Schema):
    """A vault service that the project may use."""

    id = fields.String(required=True, metadata={"description": "For vault_service_id of a job"})
    name = fields.String(required=True)
    kind = fields.String(required=True)
    is_default = fields.Boolean(required=True, metadata={"description": "Taken where a job names none"})


class VaultsShown(Schema):
    vaults = fields.List(fields.Nested(VaultShown), required=True)


@NOUN.operation(
    "GET", "", rule="list", allow=Allow.READER_OR_ADMIN, does="List the vaults that jobs may use, the default first.",
    returns=VaultsShown,
)  # fmt: skip
def list_vaults(tenant_id: str) -> Any:
    with services().database.reading() as session:
        found = vaults.services(session, tenant_id)
    # where none is marked, dispatch takes the first
    return {
        "vaults": [
            {"id": service.id, "name": service.name, "kind": service.kind, "is_default": number == 0}
            for number, service in enumerate(found)
        ]
    }
