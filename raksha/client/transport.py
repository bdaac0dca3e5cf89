"""Requests and answers: the address of the API and the project, the headers that all requests have, errors.

`ask` sends one request and gives what it answers as a record; `page` and `all` do so for lists. A GET, and a POST
(which has a key of its own: it is done once, however often it is sent), is sent again after a lost connection or a 503;
nothing else is. Redirects are not followed: a login goes to nobody but the address that was given.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
from keystoneauth1 import exceptions
from keystoneauth1.identity import generic
from keystoneauth1.plugin import AUTH_INTERFACE
from keystoneauth1.session import Session
from msgspec import Struct

from raksha.client import errors
from raksha.client.records import Page

SERVICE_TYPE = "data-protection"
#: the API that this library was written for; its microversion
VERSION = "1.0"
_REQUEST_ID = "X-Openstack-Request-Id"
_AGAIN = 2
#: seconds without any answer
_TIMEOUT = 120

T = TypeVar("T")


class Answer(Struct, Generic[T], frozen=True):
    """What came back."""

    value: T
    status: int
    etag: str | None = None
    request_id: str | None = None


class _Entry(Struct):
    code: str = ""
    detail: str = ""
    request_id: str | None = None


class _Errors(Struct):
    errors: list[_Entry]


class Transport:
    """One project of one API."""

    def __init__(
        self, session: Any, endpoint: str | None, region_name: str | None, interface: str, project_id: str | None
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._where = {"service_type": SERVICE_TYPE, "interface": interface, "region_name": region_name}
        self._project = project_id
        self._root: tuple[str, str] | None = None

    @property
    def project_id(self) -> str:
        return self._found()[1]

    @property
    def url(self) -> str:
        """Where the project's things are: https://…/v1/PROJECT."""
        base, project = self._found()
        return f"{base}/v1/{quoted(project)}"

    def ask(
        self, kind: type[T], method: str, path: str, *, body: Any = None, query: Mapping[str, Any] | None = None,
        if_match: str | None = None, more: Mapping[str, str] | None = None,
    ) -> Answer[T]:  # fmt: skip
        """`path`: below the project. `kind`: of the record; `NoneType` where no body is wanted. `more`: headers.

        Raises `ApiError`, `Unreachable`, `UnexpectedAnswer`, `NotLoggedIn`, `NoEndpoint`, `ProjectUnknown`.
        """
        headers = {"Accept": "application/json", "OpenStack-API-Version": f"{SERVICE_TYPE} {VERSION}", **(more or {})}
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        if if_match is not None:
            headers["If-Match"] = if_match
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = msgspec.json.encode(body)
        response = self._send(f"{self.url}{path}", method, headers, content, worded(query or {}))
        request_id = response.headers.get(_REQUEST_ID)
        if not 200 <= response.status_code < 300:
            raise _refused(response, request_id, self.url)
        value = _decoded(kind, response, self.url)
        return Answer(value, response.status_code, response.headers.get("ETag"), request_id)

    def page(self, kind: type[T], noun: str, path: str, query: Mapping[str, Any]) -> Page[T]:
        """`noun`: the key of the entries."""
        document: dict[str, Any] = self.ask(dict, "GET", path, query=query).value
        try:
            entries = msgspec.convert(document[noun], tuple[kind, ...])  # type: ignore[valid-type]
            links = document.get(f"{noun}_links") or ()
            href = next((link["href"] for link in links if link["rel"] == "next"), None)
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            raise _strange(self.url, error) from error
        marker = parse_qs(urlsplit(href).query).get("marker", [None])[0] if href else None
        return Page(entries, marker)

    def all(self, kind: type[T], noun: str, path: str, query: Mapping[str, Any], limit: int | None) -> Iterator[T]:
        """Page after page, as they are taken; `limit`: entries of all pages together."""
        left, asked = limit, dict(query)
        while left is None or left > 0:
            page = self.page(kind, noun, path, asked if left is None else {**asked, "limit": left})
            yield from page.entries[:left]
            if page.marker is None:
                return
            asked["marker"] = page.marker
            left = None if left is None else left - len(page.entries)

    def token_in(self, project_id: str) -> str:
        """Of the same login, for another project of the same user. Raises `NotLoggedIn`, `Unreachable`."""
        mine = _logging_in(lambda: self._session.get_token())
        keystone = _logging_in(lambda: self._session.get_endpoint(interface=AUTH_INTERFACE)) if mine else None
        if not keystone:
            raise errors.NotLoggedIn("This login is for one project", "Another one needs a login to Keystone.")
        auth = generic.Token(keystone, token=mine, project_id=project_id)
        there = Session(auth, verify=self._session.verify, cert=self._session.cert, redirect=False)
        return str(_logging_in(lambda: there.get_token()))

    # -- addresses ------------------------------------------------------------------------------------

    def _found(self) -> tuple[str, str]:
        if self._root is None:
            endpoint = self._endpoint or _logging_in(lambda: self._session.get_endpoint(**self._where))
            if not endpoint:
                region = f" in region {self._where['region_name']}" if self._where["region_name"] else ""
                raise errors.NoEndpoint(
                    f"The cloud's catalogue has no service of type {SERVICE_TYPE}{region}",
                    "Give the address of the API (--os-data-protection-endpoint), or ask your operator to register it.",
                )
            found = re.fullmatch(r"(.*?)(?:/v1(?:/([^/]+))?)?/*", endpoint)
            assert found is not None
            base, own = found.groups()
            project = self._project or own or _logging_in(lambda: self._session.get_project_id())
            if not project:
                raise errors.ProjectUnknown(
                    "It is not known which project this is about",
                    "Name it: --os-project-id (OS_PROJECT_ID), or in the address: …/v1/PROJECT. "
                    "That of `raksha serve` is `default`.",
                )
            self._root = base, project
        return self._root

    def _send(self, url: str, method: str, headers: dict[str, str], content: bytes | None, query: Any) -> Any:
        again = _AGAIN if method in ("GET", "POST") else 0
        return _logging_in(
            lambda: self._session.request(
                url, method, headers=headers, data=content, params=query, raise_exc=False, redirect=False,
                connect_retries=again, status_code_retries=again, user_agent="raksha-client", timeout=_TIMEOUT,
            )
        )  # fmt: skip


def _logging_in(call: Any) -> Any:
    """What keystoneauth raises, as ours."""
    try:
        return call()
    except exceptions.http.Unauthorized as error:
        raise errors.NotLoggedIn(f"The login was refused: {_one_line(error)}", errors.advice("", 401)) from error
    except (exceptions.EmptyCatalog, exceptions.EndpointNotFound):
        return None
    except (exceptions.ConnectFailure, exceptions.ConnectionError, exceptions.RetriableConnectionFailure) as error:
        hint = "Is the address right, and does the service run?"
        raise errors.Unreachable(f"No answer: {_one_line(error)}", hint) from error
    except (exceptions.AuthPluginException, exceptions.MissingAuthPlugin, exceptions.AuthorizationFailure) as error:
        hint = "Set the variables OS_* or choose a cloud of clouds.yaml (OS_CLOUD)."
        raise errors.NotLoggedIn(f"There is no login: {_one_line(error)}", hint) from error
    except exceptions.ClientException as error:
        raise errors.ClientError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _refused(response: Any, request_id: str | None, url: str) -> errors.ClientError:
    status = int(response.status_code)
    try:
        entries = msgspec.json.decode(response.content, type=_Errors).errors
        first = entries[0]
    except (msgspec.DecodeError, IndexError):
        if status == 401:
            return errors.api_error(401, "", "The login was refused", request_id)
        if status >= 500:
            return errors.api_error(status, "", f"{url} answered {status}", request_id)
        return _strange(url, f"status {status}")
    details = [entry.detail for entry in entries]
    return errors.api_error(status, first.code, "; ".join(details), first.request_id or request_id, details)


def _decoded(kind: type[T], response: Any, url: str) -> T:
    try:
        if kind is type(None):
            return msgspec.convert(None, kind)
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise _strange(url, error) from error


def _strange(url: str, why: object) -> errors.UnexpectedAnswer:
    return errors.UnexpectedAnswer(
        f"{url} gives answers that are none of Raksha's API: {why}", "Is it the right address, and no proxy before it?"
    )


def quoted(part: str) -> str:
    """One part of an address, whatever it holds."""
    return quote(part, safe="")


def worded(query: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as the API reads them: True, several of a few words; None: not given."""
    words: dict[str, str] = {}
    for name, value in query.items():
        if isinstance(value, bool):
            words[name] = "true" if value else "false"
        elif isinstance(value, list | tuple | set | frozenset):
            several = sorted(map(str, value))
            words[name] = several[0] if len(several) == 1 else f"in:{','.join(several)}"
        elif value is not None:
            words[name] = str(value)
    return words
