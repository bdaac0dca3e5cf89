"""Hints between processes: there is something to look at. Whoever misses one finds it by himself, only later."""

from __future__ import annotations

from msgspec import Struct

from raksha.rpc import Nothing, Verb

#: topics: any scheduler; an agent by the name of its host
SCHEDULERS = "raksha-scheduler"
AGENTS = "raksha-agent"


class Wake(Struct, frozen=True, forbid_unknown_fields=True):
    """Look now."""


WAKE = Verb("wake", Wake, Nothing)
