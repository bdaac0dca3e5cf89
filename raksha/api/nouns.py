"""How a noun joins the API: one small file with its schemas and views.

    jobs = Noun("backupjobs", "/v1/<project:tenant_id>/backupjobs", "What is protected, and when.")

    @jobs.operation("GET", "/<id:backupjob_id>", rule="show", allow=Allow.READER, does="Show a job.", returns=JobShown)
    def show(tenant_id: str, backupjob_id: str) -> Any: ...

Then the noun is added to `app.NOUNS`. `operation` is the only way to a route, so every one has its policy rule
(`backupjobs:show`), is documented, and is refused (by `app.admit`) before a body or a query is read. A view is called
with what its address holds, and with `body=` and `query=` where it has such schemas; it returns what `returns` dumps,
a pair of that and headers, or a whole response (`answer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import flask
import flask_smorest
from marshmallow import Schema
from msgspec import Struct
from werkzeug.routing import BaseConverter

from raksha.api import etag, idempotency
from raksha.api.bodies import StrictParser
from raksha.api.policy import Allow, Rule

V = TypeVar("V", bound=Callable[..., Any])

#: where a view keeps its `Operation`
_MARK = "raksha_operation"


class ProjectConverter(BaseConverter):
    """A project as Keystone or the file of users names it."""

    regex = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}"


class IdConverter(BaseConverter):
    """An id that we made. What is none is answered 404 before anybody looks it up."""

    regex = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def described(converter: BaseConverter) -> dict[str, str]:
    """Of a part of an address, for the OpenAPI document."""
    return {"type": "string", "pattern": f"^{converter.regex}$"}


class Operation(Struct, frozen=True):
    """What has to be known of a view before it is called. No rule: it is for everybody."""

    rule: Rule | None
    takes_body: bool = False
    takes_query: bool = False
    #: a change of something that others may be changing
    needs_if_match: bool = False


class Noun(flask_smorest.Blueprint):  # type: ignore[misc]
    """Routes of one kind of thing."""

    ARGUMENTS_PARSER = StrictParser()

    def __init__(self, name: str, prefix: str, description: str, *, aliases: tuple[str, ...] = ()) -> None:
        """`prefix`: address of all routes. `aliases`: further prefixes that lead to the same, undocumented."""
        super().__init__(name.replace("-", "_"), __name__, url_prefix=prefix, description=description)
        self.noun = name
        self.prefix = prefix
        self.aliases = aliases
        self.rules: list[Rule] = []

    def operation(
        self,
        method: str,
        path: str,
        *,
        rule: str,
        allow: Allow,
        does: str,
        returns: type[Schema] | None = None,
        status: int = 200,
        also: tuple[int, type[Schema]] | None = None,
        body: type[Schema] | None = None,
        body_optional: bool = False,
        query: type[Schema] | None = None,
        if_match: bool = False,
        repeatable: bool = False,
        headers: Sequence[Mapping[str, Any]] = (),
        errors: tuple[int, ...] = (),
    ) -> Callable[[V], V]:
        """Make a function the view of `method` at `path` below the prefix.

        `rule`: second half of the policy rule's name. `also`: another status that it may answer with, and its schema.
        `body_optional`: no body is an empty one. `if_match`: it needs If-Match. `repeatable`: the view
        goes through `idempotency.once`. `headers`: others that it reads, as OpenAPI has them. `errors`: statuses of
        this operation beside those that all have, for the documentation.
        """
        written = Rule(f"{self.noun}:{rule}", allow, does, method, shown_path(self.prefix + path))
        self.rules.append(written)
        told = [401, 403, 404, *errors]
        told += [400, 413, 415] if body else []
        told += [412, 428] if if_match else []
        told += [409] if repeatable else []

        def decorate(view: V) -> V:
            made = self.response(status, returns)(view)
            if also is not None:
                made = self.alt_response(also[0], schema=also[1])(made)
            if query is not None:
                made = self.arguments(query, location="query", arg_name="query")(made)
            if body is not None:
                made = self.arguments(body, location="json", arg_name="body", required=not body_optional)(made)
            for code in sorted(set(told)):
                made = self.alt_response(code, HTTPStatus(code).name)(made)
            made = self.doc(summary=does, operationId=written.name.replace(":", "_").replace("-", "_"))(made)
            all_headers = [etag.PARAMETER] * if_match + [idempotency.PARAMETER] * repeatable + list(headers)
            if all_headers:
                made = self.doc(parameters=all_headers)(made)
            _mark(made, Operation(written, body is not None, query is not None, if_match))
            self.route(path, methods=[method])(made)
            return view

        return decorate


def for_everybody(view: V) -> V:
    """Mark a view outside of all nouns that needs no identity."""
    _mark(view, Operation(None))
    return view


def _mark(view: Callable[..., Any], operation: Operation) -> None:
    setattr(view, _MARK, operation)
    # Flask would answer OPTIONS by itself, with no body and to everybody
    view.provide_automatic_options = False  # type: ignore[attr-defined]


def operation_of(app: flask.Flask, endpoint: str) -> Operation | None:
    """None: nobody has said who may call it."""
    found: Operation | None = getattr(app.view_functions[endpoint], _MARK, None)
    return found


def answer(schema: type[Schema], data: Any, status: int, headers: dict[str, str] | None = None) -> flask.Response:
    """A whole response, for what has to be kept as it was sent (`idempotency.once`)."""
    response = flask.jsonify(schema().dump(data))
    response.status_code = status
    response.headers.update(headers or {})
    return response


def shown_path(rule: str) -> str:
    """Of Flask's rule, as OpenAPI and policy files write it."""
    return str(flask_smorest.spec.FlaskPlugin.flaskpath2openapi(rule))
