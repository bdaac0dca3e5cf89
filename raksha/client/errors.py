"""What goes wrong for a caller of the library: every error has a message, a hint (what to do next) and an exit code::

    ClientError
      ApiError            the API said no: status, code, detail, request_id, problems
        InvalidRequest    400, 413, 415     NotAuthenticated  401      NotAllowed  403     NotFound  404
        Conflict          409               ChangedMeanwhile  412      ServiceFailed  5xx
      Unreachable         no answer         UnexpectedAnswer  one that is not the API's
      NotLoggedIn         no credentials, or the login was refused     NoEndpoint, ProjectUnknown
      NoSuch, Ambiguous   names             WrongUse      an option      Failed, Interrupted     what was waited for

`code` of an `ApiError` is stable (`data-protection.state_conflict`), `reason` the same without
what stands before the dot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

_PREFIX = "data-protection."


class ClientError(Exception):
    """Base of all. `str()` is the message alone."""

    #: of the command line: docs/commands.md
    exit_code: ClassVar[int] = 1
    request_id: str | None = None

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)

    def told(self) -> str:
        """For a person: what is wrong, what to do next, and what the service's log knows it by."""
        known = f"(request id {self.request_id})" if self.request_id else ""
        return " ".join(part for part in (sentence(self.message), self.hint, known) if part)


class ApiError(ClientError):
    """The API refused, or failed at it."""

    def __init__(
        self, *, code: str, status: int, detail: str, request_id: str | None = None, hint: str | None = None,
        problems: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.code = code
        self.status = status
        self.detail = detail
        #: each fault of the request, where it has several
        self.problems = tuple(problems) or (detail,)
        super().__init__(detail, advice(code, status) if hint is None else hint)
        self.request_id = request_id

    @property
    def reason(self) -> str:
        return self.code.removeprefix(_PREFIX)


class InvalidRequest(ApiError):
    exit_code = 2


class NotAuthenticated(ApiError):
    exit_code = 2


class NotAllowed(ApiError):
    exit_code = 4


class NotFound(ApiError):
    exit_code = 3


class Conflict(ApiError):
    exit_code = 4


class ChangedMeanwhile(ApiError):
    """Somebody else changed it between our reading and our writing."""

    exit_code = 4


class ServiceFailed(ApiError):
    """What the service could not do, for now or at all."""


class Unreachable(ClientError):
    """Nobody answers there."""


class UnexpectedAnswer(ClientError):
    """Something answered that is not this API."""


class NotLoggedIn(ClientError):
    exit_code = 2


class NoEndpoint(ClientError):
    exit_code = 2


class ProjectUnknown(ClientError):
    exit_code = 2


class WrongUse(ClientError):
    exit_code = 2


class NoSuch(ClientError):
    """What was named does not exist."""

    exit_code = 3


class Ambiguous(ClientError):
    """A name that several things have."""

    exit_code = 2

    def __init__(self, noun: str, name: str, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        super().__init__(
            f"{len(ids)} {noun}s are called {name!r}: {', '.join(ids)}", "Name the one you mean by its id."
        )


class Failed(ClientError):
    """What was waited for ended, and not well."""


class Interrupted(ClientError):
    """Somebody stopped waiting."""

    exit_code = 130


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest, 413: InvalidRequest, 415: InvalidRequest, 406: InvalidRequest, 401: NotAuthenticated,
    403: NotAllowed, 404: NotFound, 409: Conflict, 412: ChangedMeanwhile,
}  # fmt: skip

_HINTS = {
    "has_restore_points": "Add --with-runs (library: with_runs=True) to delete them as well.",
    "protected": "End the protection first: raksha run set --unprotect RUN.",
    "limit_exceeded": "`raksha limits show` and `raksha usage show` tell what the project may have and has; "
    "delete what is not needed, or ask your operator for more.",
    "vm_not_seen": "`raksha vm list` shows the VMs that can be protected.",
    "version_not_served": "This client and the service are of different age: update the older one.",
    "not_scoped": "Log in to a project (OS_PROJECT_NAME or OS_PROJECT_ID).",
}
_HINTS_BY_STATUS = {
    401: "Check user and password (OS_USERNAME, OS_PASSWORD, or the cloud in clouds.yaml).",
    403: "Your roles in this project do not suffice: reader looks, member changes, admin operates. "
    "Whoever manages the project can give you one.",
    404: "Look at what there is with the command `list`, and whether it is the right project (--os-project-id).",
    409: "Look at it with the command `show`, then try again.",
    412: "Somebody else changed it meanwhile, and nothing was done: look at it again, and repeat.",
}


def advice(code: str, status: int) -> str:
    """What to do next."""
    if status >= 500:
        again = "Try again in a moment" if status in (502, 503, 504) else "Try again"
        return f"{again}; if it stays so, give your operator the request id."
    return _HINTS.get(code.removeprefix(_PREFIX)) or _HINTS_BY_STATUS.get(status, "")


def api_error(
    status: int, code: str, detail: str, request_id: str | None = None, problems: Sequence[str] = ()
) -> ApiError:
    """The class that fits the status."""
    kind = _BY_STATUS.get(status, ServiceFailed if status >= 500 else ApiError)
    return kind(code=code, status=status, detail=detail, request_id=request_id, problems=problems)


def sentence(text: str) -> str:
    return text if not text or text[-1] in ".!?" else f"{text}."
