"""Addresses in answers."""

from __future__ import annotations

import flask

from raksha.api.services import settings


def endpoint() -> str:
    """URL of the API as clients know it, without a slash at its end."""
    return (settings().public_endpoint or flask.request.host_url).rstrip("/")


def location(*steps: str) -> str:
    """URL of what was made, below the address of this request: for `Location`."""
    return "/".join((f"{endpoint()}{flask.request.path.rstrip('/')}", *steps))


def address(*steps: str) -> str:
    """URL of something in v1, by the steps that lead there."""
    return "/".join((f"{endpoint()}/v1", *steps))
