"""What Swift, Keystone and the network say, in Raksha's words. No token, password or key is ever in a message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import requests
from keystoneauth1 import exceptions as keystone
from swiftclient.client import ClientException
from urllib3.exceptions import HTTPError

from raksha.errors import (
    BadVaultUrl,
    ObjectExists,
    ObjectMissing,
    RakshaError,
    VaultAccessDenied,
    VaultFull,
    VaultNotFound,
    VaultUnavailable,
)

_FULL = (413, 507)
#: 409: another writer's clock; 422: changed on the way; 429, 498: too many requests; 408, 499: too slow
_LATER = (408, 409, 422, 429, 498, 499)


@contextmanager
def translated(url: str, name: str = "", *, writing: bool = False) -> Iterator[None]:
    """`name` is the object asked for; `writing` tells that a 404 means its container."""
    try:
        yield
    except ClientException as error:
        raise _for_status(url, name, writing, error) from error
    except (keystone.SSLError, requests.exceptions.SSLError) as error:
        detail = f"its certificate is not trusted ({_reason(error)}); OS_CACERT names a file of those that are"
        raise VaultAccessDenied(url=url, detail=detail) from error
    except keystone.ConnectionError as error:
        raise VaultUnavailable(url=url, detail=f"Keystone: {_reason(error.__context__ or error)}") from error
    except (keystone.HttpServerError, keystone.DiscoveryFailure) as error:
        raise VaultUnavailable(url=url, detail=f"Keystone: {error}") from error
    except keystone.ClientException as error:
        raise VaultAccessDenied(url=url, detail=f"Keystone: {error}") from error
    except (requests.RequestException, HTTPError, OSError) as error:
        if isinstance(error, ValueError):
            raise BadVaultUrl(url=url, detail=f"the address to log in at cannot be used: {error}") from error
        raise VaultUnavailable(url=url, detail=f"{_reason(error)}{_where(error)}") from error


def verdict(url: str, status: int, body: bytes) -> tuple[int, list[tuple[str, str]]]:
    """Status and problems (`container/key` as Swift knows it, what is wrong) from the answer to a manifest.

    Swift answers 202 before it has looked at the parts; what it found is in the body.
    """
    if status != 202:
        return status, []
    try:
        found = json.loads(body)
        status = int(found["Response Status"].split()[0])
        return status, [(unquote(path).lstrip("/"), problem) for path, problem in found.get("Errors", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VaultUnavailable(url=url, detail="the answer to a manifest broke off") from error


def _for_status(url: str, name: str, writing: bool, error: ClientException) -> RakshaError:
    status = error.http_status
    if status is None:
        return VaultAccessDenied(url=url, detail=error.msg)
    detail = f"{status} {error.http_reason}".strip()
    if status == 404:
        return VaultNotFound(url=url) if writing or not name else ObjectMissing(name=name)
    if status == 412:
        return ObjectExists(name=name)
    if status in _FULL:
        return VaultFull(url=url, detail=detail)
    if status in _LATER or status >= 500:
        return VaultUnavailable(url=url, detail=detail)
    if 300 <= status < 400:
        detail = f"it answers with a redirect ({status}), which is not followed"
    return VaultAccessDenied(url=url, detail=detail)


def _reason(error: BaseException) -> str:
    """The innermost cause: all around it is names of classes and memory addresses."""
    inner: object = error
    while isinstance(inner, BaseException):
        error = inner
        given = [getattr(error, "reason", None), *error.args, error.__cause__]
        inner = next((each for each in given if isinstance(each, BaseException)), None)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _where(error: BaseException) -> str:
    address = getattr(getattr(error, "request", None), "url", None)
    if not address:
        return ""
    parts = urlsplit(address)
    return f" ({parts.hostname}:{parts.port})" if parts.port else f" ({parts.hostname})"
