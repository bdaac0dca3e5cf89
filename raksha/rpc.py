"""Calls between processes over oslo.messaging. The bus only carries: what is true stands in the database.

::

    CLAIM = Verb("claim", Claim, Claimed)                       what may be asked, in records
    bus = Bus("rabbit://…", patience=10)                        fake:// stays within this process
    with bus.serve("scheduler", host, {CLAIM: claim, …}): …      each in a thread of its own
    claimed = bus.to("scheduler").call(CLAIM, Claim(…))         any one of those that serve it
    bus.to("agent", host).cast(WAKE, Wake(…))                   that one; nobody says whether it came

Promises: what arrives was validated against its record, unknown fields are an error; an error of `raksha.errors` on the
far side is raised here with its fields; any other is `BusFailed`, and stands in the far side's log.
Does not promise delivery, order, or that a call is carried out once: one that ends with `BusUnavailable` may have been
carried out. Whoever calls must be able to say it again.
"""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import msgspec
from kombu.exceptions import OperationalError
from oslo_config import cfg
from oslo_service import backend

from raksha import errors
from raksha.errors import BusFailed, BusUnavailable, RakshaError

with warnings.catch_warnings():
    # a library looks whether eventlet is there, which says that it is out of date; nothing of it is used
    warnings.simplefilter("ignore")
    # before oslo.messaging is imported, or that runs on eventlet
    backend.init_backend(backend.BackendType.THREADING)
    import oslo_messaging

_log = logging.getLogger(__name__)

Question = TypeVar("Question", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)
Handler = Callable[[Any], msgspec.Struct | None]

#: the second where there has not been a connection yet: oslo.messaging lets it through
_AWAY = (oslo_messaging.MessageDeliveryFailure, OperationalError)

_NAMESPACE = "raksha"
_VERSION = "1.0"


class Verb(Generic[Question, Answer]):
    """One thing that can be asked. The records are part of the protocol: fields may be added, with defaults."""

    def __init__(self, name: str, question: type[Question], answer: type[Answer]) -> None:
        self.name = name
        # made here, before there are threads: making them in two threads at once crashes msgspec 0.22
        self.question = msgspec.json.Decoder(question)
        self.answer = msgspec.json.Decoder(answer)


class Nothing(msgspec.Struct, frozen=True):
    """The answer where there is nothing to say."""


class Bus:
    """One connection to the message bus, for any number of threads."""

    def __init__(self, url: str, patience: float = 30.0) -> None:
        """`url`: of oslo.messaging. `patience`: seconds to wait for an answer. Raises `BusFailed` for a bad URL."""
        self._patience = patience
        conf = cfg.CONF
        try:
            # oslo.messaging looks at options that only this global object has
            conf([], project="raksha", default_config_files=[], default_config_dirs=[])
            self._transport = oslo_messaging.get_rpc_transport(conf, url=url)
        except (oslo_messaging.DriverLoadFailure, oslo_messaging.InvalidTransportURL) as error:
            raise BusFailed(detail=f"its address cannot be used: {type(error).__name__}") from error

    def close(self) -> None:
        self._transport.cleanup()

    @contextmanager
    def serve(self, topic: str, server: str, handlers: Mapping[Verb[Any, Any], Handler]) -> Iterator[None]:
        """Answer as `server` until the block ends; what is under way is waited for."""
        target = oslo_messaging.Target(topic=topic, server=server)
        endpoint = _Endpoint({verb.name: (verb, handler) for verb, handler in handlers.items()})
        serving = oslo_messaging.get_rpc_server(
            self._transport,
            target,
            [endpoint],
            access_policy=oslo_messaging.ExplicitRPCAccessPolicy,
        )
        serving.start()
        try:
            yield
        finally:
            serving.stop()
            serving.wait()

    def to(self, topic: str, server: str | None = None) -> Caller:
        """Whoever serves the topic, or one of them by name."""
        target = oslo_messaging.Target(topic=topic, server=server, namespace=_NAMESPACE, version=_VERSION)
        return Caller(oslo_messaging.get_rpc_client(self._transport, target), self._patience)


class Caller:
    """Made by `Bus.to`."""

    def __init__(self, client: Any, patience: float) -> None:
        self._client = client
        self._patience = patience

    def call(self, verb: Verb[Question, Answer], question: Question, patience: float | None = None) -> Answer:
        """Ask, and wait for the answer. Raises `BusUnavailable`, `BusFailed`, and what the far side raises."""
        prepared = self._client.prepare(timeout=patience or self._patience, retry=0)
        try:
            told = prepared.call({}, "carry", verb=verb.name, body=_encode(question))
        except oslo_messaging.MessagingTimeout as error:
            raise BusUnavailable(verb=verb.name, detail="nobody answered in time") from error
        except _AWAY as error:
            raise BusUnavailable(verb=verb.name, detail="the bus is away") from error
        if "error" in told:
            raise _raised(told["error"], told["fields"])
        return verb.answer.decode(told["body"])

    def cast(self, verb: Verb[Question, Any], question: Question) -> bool:
        """Say it, and go on. False: the bus is away. True does not mean that anybody heard it."""
        try:
            self._client.prepare(retry=0).cast({}, "carry", verb=verb.name, body=_encode(question))
        except (*_AWAY, oslo_messaging.MessagingTimeout):
            return False
        return True


class _Endpoint:
    """The far side: decodes, calls, encodes."""

    target = oslo_messaging.Target(namespace=_NAMESPACE, version=_VERSION)

    def __init__(self, verbs: Mapping[str, tuple[Verb[Any, Any], Handler]]) -> None:
        self._verbs = verbs

    @oslo_messaging.expose  # type: ignore[untyped-decorator]
    def carry(self, _context: Any, verb: str, body: str) -> dict[str, Any]:
        try:
            if verb not in self._verbs:
                raise BusFailed(detail=f"{verb} is nothing that can be asked here")
            known, handler = self._verbs[verb]
            try:
                question = known.question.decode(body)
            except msgspec.DecodeError as error:
                raise BusFailed(detail=f"{verb}: {error}") from error
            return {"body": _encode(handler(question) or Nothing())}
        except RakshaError as error:
            return _told(error)
        except Exception:
            mark = uuid.uuid4().hex[:12]
            _log.exception("%s failed [%s]", verb, mark)
            # what is not meant to happen is told to whoever reads the log, not to whoever asked
            return _told(BusFailed(detail=f"{verb}: the far side failed, its log says why [{mark}]"))


def _told(error: RakshaError) -> dict[str, str]:
    return {"error": error.code, "fields": _encode(error.fields)}


def _encode(record: msgspec.Struct | Mapping[str, Any]) -> str:
    return msgspec.json.encode(record, enc_hook=str).decode()


def _raised(code: str, fields: str) -> RakshaError:
    """The error as it was on the far side; fields that JSON does not know have become text."""
    kind = errors.by_code(code)
    return BusFailed(detail=f"{code}: {fields}") if kind is None else kind(**msgspec.json.decode(fields))
