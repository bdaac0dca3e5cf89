"""`.. rest-api:: openapi.json`: an OpenAPI document as sections: every request, and every body with its fields.

Our own, because sphinxcontrib-openapi 0.10 shows no fields of bodies, and stumbles over answers called `default`.
What it understands of OpenAPI is what flask-smorest writes; anything else is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

Node = Mapping[str, Any]

_METHODS = ("get", "post", "put", "patch", "delete")
#: of a schema, in words behind its type
_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "minLength": "least length",
    "maxLength": "greatest length",
    "minItems": "least entries",
    "maxItems": "most entries",
}
#: of schemas; `allOf` has one alone, where something is said beside a reference
_CHOICES = ("allOf", "anyOf", "oneOf")
_KNOWN = {
    "$ref", "additionalProperties", "default", "description", "enum", "example", "format", "items", "nullable",
    "pattern", "properties", "readOnly", "required", "title", "type", *_BOUNDS, *_CHOICES,
}  # fmt: skip


class RestApi(SphinxDirective):
    """The document, at a path from the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        _, name = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(name)
        document = json.loads(Path(name).read_bytes())
        content = StringList(list(lines(document)), source=name)
        section = nodes.section()
        section.document = self.state.document
        nested_parse_with_titles(self.state, content, section)
        return section.children


def lines(document: Node) -> Iterator[str]:
    """As reStructuredText."""
    for tag in document["tags"]:
        yield from _title(tag["name"], "=")
        yield from (_said(tag["description"]), "")
        for path, item in document["paths"].items():
            for method in _METHODS:
                if tag["name"] in item.get(method, {}).get("tags", ()):
                    yield from _request(method, path, item)
    yield from _title("Bodies", "=")
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield from (f".. _rest-{name}:", "")
        yield from _title(name, "-")
        yield from _fields(schema)


def _request(method: str, path: str, item: Node) -> Iterator[str]:
    operation = item[method]
    summary, _, more = operation["summary"].partition(". ")
    yield from _title(_said(summary.rstrip(".")), "-")
    yield from (".. code-block:: none", "", f"   {method.upper()} {path}", "")
    for text in (more, operation.get("description", "")):
        yield from (_said(text), "")
    rows = [
        [f"``{each['name']}``", each["in"], _kind(each["schema"]), _said(each.get("description", ""))]
        for each in (*item.get("parameters", ()), *operation.get("parameters", ()))
    ]
    yield from _table(["parameter", "in", "type", ""], rows)
    body = operation.get("requestBody")
    if body:
        yield from (f"**Body**: {_content(body)}{'' if body.get('required') else ', or none'}", "")
    yield from ("**Answers**:", "")
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            told = answer["$ref"].rpartition("/")[2].replace("_", " ").capitalize()
            found = ":ref:`ErrorBody <rest-ErrorBody>`"
        else:
            told, found = answer.get("description", ""), _content(answer)
        yield f"* ``{status}`` {_said(told)}{found and f': {found}'}"
    yield ""


def _content(node: Node) -> str:
    return ", ".join(_kind(each["schema"]) for each in node.get("content", {}).values() if "schema" in each)


def _fields(schema: Node) -> Iterator[str]:
    yield from (_said(schema.get("description", "")), "")
    needed = schema.get("required", ())
    rows = [
        [f"``{field}``", _kind(each), "yes" if field in needed else "", _said(each.get("description", ""))]
        for field, each in schema.get("properties", {}).items()
    ]
    if not rows and schema.get("type") != "object":
        yield from (_kind(schema), "")
    elif not rows:
        more = schema.get("additionalProperties")
        yield from (f"By name: {_kind(more)}" if isinstance(more, Mapping) else "Anything.", "")
    yield from _table(["field", "type", "required", ""], rows)


def _kind(schema: Node) -> str:
    """A type in words, with links to the bodies that it is made of."""
    unknown = schema.keys() - _KNOWN
    if unknown:
        raise ValueError(f"OpenAPI: {', '.join(unknown)} is not understood")
    if schema == {"nullable": True, "type": "object"}:
        return "null"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        words = f":ref:`{name} <rest-{name}>`"
    elif any(each in schema for each in _CHOICES):
        words = " or ".join(_kind(each) for name in _CHOICES for each in schema.get(name, ()))
    elif schema.get("type") == "array":
        words = f"list of {_kind(schema['items'])}"
    elif "enum" in schema:
        words = " or ".join(f"``{json.dumps(each).strip(chr(34))}``" for each in schema["enum"] if each is not None)
    elif isinstance(schema.get("additionalProperties"), Mapping):
        words = f"object, by name: {_kind(schema['additionalProperties'])}"
    else:
        words = schema.get("format") or schema.get("type", "any")
    words += "".join(f", {told} {schema[bound]}" for bound, told in _BOUNDS.items() if bound in schema)
    if schema.get("pattern"):
        words += f", ``{schema['pattern']}``"
    if schema.get("default") is not None:
        words += f", default ``{json.dumps(schema['default'])}``"
    return words + (", or null" if schema.get("nullable") else "")


def _said(text: str) -> str:
    """Prose of the document: `names` are code, everything else is as it stands."""
    parts = re.split(r"`([^`]+)`", text)
    plain = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    return "".join(
        f"{before}``{code}``" if code else before for before, code in zip(plain, [*parts[1::2], ""], strict=True)
    ).replace("\n", " ")


def _title(text: str, line: str) -> Iterator[str]:
    yield from (text, line * len(text), "")


def _table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    if not rows:
        return
    yield from (".. list-table::", "   :header-rows: 1", "   :widths: auto", "")
    for row in [heads, *rows]:
        for number, cell in enumerate(row):
            yield f"     - {cell}" if number else f"   * - {cell}"
    yield ""


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("rest-api", RestApi)
    return {"parallel_read_safe": True}
