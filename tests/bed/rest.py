"""Clients of several API processes, as behind a load balancer: whoever answers, answers for all.

A request is sent again, to the next process, until there is an answer that is none of "not now": a POST under one
idempotency key, so that it is done once however often it was sent.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

#: seconds for one attempt, between two, and for all of them
_ONE, _PAUSE, _ALL = 15.0, 0.3, 180.0


class Refused(Exception):
    """The answer of an API that is no success."""

    def __init__(self, status: int, document: Any) -> None:
        super().__init__(f"{status}: {document}")
        self.status = status
        self.document = document


class Rest:
    """For one thread."""

    def __init__(self, ports: Sequence[int], user: str, password: str, project: str) -> None:
        self._ports = itertools.cycle(ports)
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._root = f"/v1/{project}"
        #: statuses of all answers, and how often each came
        self.statuses: dict[int, int] = {}
        #: requests that were sent more than once
        self.repeated = 0

    def get(self, path: str) -> Any:
        return self._ask("GET", path)[0]

    def post(self, path: str, body: Any = None) -> Any:
        return self._ask("POST", path, body, {"Idempotency-Key": str(uuid.uuid4())})[0]

    def put(self, path: str, body: Any) -> Any:
        return self._ask("PUT", path, body, {"If-Match": "*"})[0]

    def all(self, path: str, noun: str) -> list[Any]:
        """Every page of a list."""
        found: list[Any] = []
        while True:
            marker = f"?marker={found[-1]['id']}" if found else ""
            page = self.get(path + marker)
            found += page[noun]
            if not page.get(f"{noun}_links"):
                return found

    def _ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[Any, Any]:
        """Raises `Refused`, `TimeoutError`."""
        until = time.monotonic() + _ALL
        for attempt in itertools.count():
            self.repeated += attempt == 1
            try:
                status, data, told = self._once(method, path, body, headers or {})
            except (OSError, http.client.HTTPException) as error:
                why: object = error
            else:
                self.statuses[status] = self.statuses.get(status, 0) + 1
                document = json.loads(data) if data else None
                if status < 400:
                    return document, told
                # the first of two that were sent is still at work
                if status != 503 and "request_under_way" not in json.dumps(document):
                    raise Refused(status, document)
                why = f"{status} {document}"
            if time.monotonic() > until:
                raise TimeoutError(f"{method} {path}: nobody answers: {why}")
            time.sleep(_PAUSE)
        raise AssertionError

    def _once(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", next(self._ports), timeout=_ONE)
        try:
            content = {} if body is None else {"Content-Type": "application/json"}
            given = {"Authorization": self._authorization, **content, **headers}
            connection.request(method, self._root + path, None if body is None else json.dumps(body), given)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()
