"""What is there before anybody logs in: version discovery, the OpenAPI document, and a page to browse it.

The page is Swagger UI out of a PyPI package, served from here: nothing is fetched from elsewhere, and the browser is
told to allow nothing else.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import flask
import flask_smorest
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from raksha.api import versions
from raksha.api.links import endpoint
from raksha.api.nouns import for_everybody

DESCRIPTION = (
    "Backup jobs of virtual machines, their runs and restores. Conventions (errors, versions, pages, ETags, "
    "idempotency) are those of docs/api.md."
)

_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Raksha API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="api"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null});\n'

_HEADERS = {
    # Swagger UI styles its elements one by one, and draws its icons as data
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}


def add_to(app: flask.Flask, api: flask_smorest.Api) -> None:
    @for_everybody
    def openapi() -> ResponseReturnValue:
        return flask.Response(document(api), mimetype="application/json")

    for path, view in (
        ("/", discovery),
        ("/v1/", version_1),
        ("/openapi.json", openapi),
        ("/docs", page),
        ("/docs/<name>", asset),
    ):
        app.add_url_rule(path, view_func=view)


def document(api: flask_smorest.Api) -> str:
    """The OpenAPI document, always the same bytes for the same API."""
    return json.dumps(api.spec.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@for_everybody
def discovery() -> dict[str, Any]:
    return {"versions": [versions.document(endpoint())]}


@for_everybody
def version_1() -> dict[str, Any]:
    return {"version": versions.document(endpoint())}


@for_everybody
def page() -> flask.Response:
    return flask.Response(_PAGE, mimetype="text/html", headers=_HEADERS)


@for_everybody
def asset(name: str) -> flask.Response:
    if name == "start.js":
        return flask.Response(_START, mimetype="text/javascript", headers=_HEADERS)
    if name not in _ASSETS:
        raise NotFound
    response = flask.send_from_directory(_assets(), name)
    response.headers.update(_HEADERS)
    return response


def _assets() -> Path:
    """Where the package has them, without importing it."""
    found = find_spec("flask_swagger_ui")
    assert found is not None and found.origin is not None, "flask-swagger-ui belongs to the extra `service`"
    return Path(found.origin).parent / "dist"
