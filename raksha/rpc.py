"""Calls between processes over oslo.messaging. The bus only carries: what is true stands in the database.

::

    CLAIM = Verb("claim", Claim, Claimed)                       what may be asked, in records
    bus = Bus("rabbit://…", patience=10)                        fake:// stays within this process
    with bus.serve("scheduler", host, {CLAIM: claim, …}): …      each in a thread of its own
    claimed = bus.to("scheduler").call(CLAIM, Claim(…))         any one of those that serve it
    bus.to("agent", host).cast(WAKE, Wake(…))                   that one; nobody says whether it came
    Notices("rabbit://…", ["notifications"]).send(Notice(…))    for whoever listens, as OpenStack's services tell it

Promises: what arrives was validated against its record, unknown fields are an error; an error of `raksha.errors` on the
far side is raised here with its fields; any other is `BusFailed`, and stands in the far side's log. While the bus is
away, also from before the start of this process, nobody waits for it longer than he said (twice that for one that
stands still with its connections open); it is found again within seconds.
Does not promise delivery, order, or that a call is carried out once: one that ends with `BusUnavailable` may have been
carried out. Whoever calls must be able to say it again. What `Notices.send` has sent, the broker has confirmed.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import msgspec
from amqp.exceptions import AccessRefused, AMQPError, NotAllowed  # type: ignore[import-untyped]
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

#: all but the first where there has not been a connection yet: oslo.messaging lets them through
_AWAY = (oslo_messaging.MessageDeliveryFailure, OperationalError, AMQPError)
#: wrong login or virtual host; also of a broker that is just starting
_REFUSED = (AccessRefused, NotAllowed)

_NAMESPACE = "raksha"
_VERSION = "1.0"

#: a topic that nobody serves
_NOBODY = "raksha-nobody"
#: seconds at most between two attempts to find a broker that has been away for long; `transport_url?…` may say another
_LONGEST_PAUSE = "5"
#: seconds between two looks whether the bus is there, of one who wants to answer
_LOOK = 1.0
#: seconds for the first of them: with a bus that is there, whoever serves can be asked once `serve` has begun
_AT_ONCE = 5.0


class Verb(Generic[Question, Answer]):
    """One thing that can be asked. The records are part of the protocol: fields may be added, with defaults."""

    def __init__(self, name: str, question: type[Question], answer: type[Answer]) -> None:
        self.name = name
        # made here, before there are threads: making them in two threads at once crashes msgspec 0.22
        self.question = msgspec.json.Decoder(question)
        self.answer = msgspec.json.Decoder(answer)


class Nothing(msgspec.Struct, frozen=True):
    """The answer where there is nothing to say."""


_TRY = Verb("try", Nothing, Nothing)


class Bus:
    """One connection to the message bus, for any number of threads."""

    def __init__(self, url: str, patience: float = 30.0) -> None:
        """`url`: of oslo.messaging. `patience`: seconds to wait for an answer. Raises `BusFailed` for a bad URL."""
        self._patience = patience
        self._opening = threading.Lock()
        self._opener: threading.Thread | None = None
        self._opened = threading.Event()
        self._closed_because = ""
        self._transport = _transport(url, oslo_messaging.get_rpc_transport)

    def close(self) -> None:
        # one that still waits for a broker holds what this would wait for; it ends with the process
        if self._opener is None or not self._opener.is_alive():
            self._transport.cleanup()

    @contextmanager
    def serve(self, topic: str, server: str, handlers: Mapping[Verb[Any, Any], Handler]) -> Iterator[None]:
        """Answer as `server` until the block ends; what is under way is waited for.

        While the bus is away the block begins all the same: it is answered as soon as the bus is there.
        """
        target = oslo_messaging.Target(topic=topic, server=server)
        endpoint = _Endpoint({verb.name: (verb, handler) for verb, handler in handlers.items()})

        def make() -> Any:
            policy = oslo_messaging.ExplicitRPCAccessPolicy
            return oslo_messaging.get_rpc_server(self._transport, target, [endpoint], access_policy=policy)

        serving = _Serving(self, make, f"{server} of {topic}")
        serving.begin()
        try:
            yield
        finally:
            serving.end()

    def to(self, topic: str, server: str | None = None) -> Caller:
        """Whoever serves the topic, or one of them by name."""
        target = oslo_messaging.Target(topic=topic, server=server, namespace=_NAMESPACE, version=_VERSION)
        return Caller(self, oslo_messaging.get_rpc_client(self._transport, target), self._patience)

    def look(self) -> None:
        """Whether the bus takes a message: one for nobody. Raises `BusUnavailable`, at once where nobody listens."""
        self.to(_NOBODY).send(_TRY, Nothing())

    def open(self, patience: float) -> None:
        """Have a queue for answers. Raises `BusUnavailable` after so many seconds, at once where nobody listens.

        The first call of oslo.messaging makes it, for as long as that takes: hence a thread that nobody waits for.
        """
        if self._opened.is_set():
            return
        with self._opening:
            if self._opener is None or not self._opener.is_alive():
                self._closed_because = "the bus is away"
                self._opener = threading.Thread(target=self._open, name="bus-opener", daemon=True)
                self._opener.start()
            opener = self._opener
        opener.join(patience)
        if not self._opened.is_set():
            raise BusUnavailable(verb=_TRY.name, detail=self._closed_because)

    def _open(self) -> None:
        try:
            self.look()
            self.to(_NOBODY).ask(_TRY, Nothing(), 0.01)
        except oslo_messaging.MessagingTimeout:  # nobody answers that
            self._opened.set()
        except (BusUnavailable, *_AWAY) as error:
            self._closed_because = _why(error)


def _transport(url: str, get: Callable[..., Any]) -> Any:
    """Raises `BusFailed` for a bad URL."""
    conf = cfg.CONF
    try:
        # oslo.messaging looks at options that only this global object has
        conf([], project="raksha", default_config_files=[], default_config_dirs=[])
        parsed = oslo_messaging.TransportURL.parse(conf, url)
        if parsed.transport == "rabbit":
            parsed.query.setdefault("rabbit_interval_max", _LONGEST_PAUSE)
        return get(conf, url=parsed)
    except (oslo_messaging.DriverLoadFailure, oslo_messaging.InvalidTransportURL) as error:
        raise BusFailed(detail=f"its address cannot be used: {type(error).__name__}") from error


class Notice(msgspec.Struct, frozen=True):
    """A notification as oslo.messaging's own are."""

    message_id: str
    publisher_id: str
    event_type: str
    #: `INFO` or `ERROR`
    priority: str
    payload: Mapping[str, Any]
    #: of what happened: UTC, as `datetime` prints it
    timestamp: str


class Notices:
    """Sends notifications, to the queues `TOPIC.info` and `TOPIC.error` of each topic."""

    def __init__(self, url: str, topics: Sequence[str]) -> None:
        """Raises `BusFailed` for a bad URL."""
        self._transport = _transport(url, oslo_messaging.get_notification_transport)
        self._topics = topics

    def send(self, notice: Notice) -> None:
        """Returns when the bus has it. Raises `BusUnavailable`, at once where nobody listens.

        Past `oslo_messaging.Notifier`, for that gives each attempt another `message_id`, and keeps to itself that the
        bus was away.
        """
        for topic in self._topics:
            target = oslo_messaging.Target(topic=f"{topic}.{notice.priority.lower()}")
            try:
                self._transport._send_notification(target, {}, msgspec.to_builtins(notice), version=2.0, retry=0)
            except (*_AWAY, oslo_messaging.MessagingTimeout) as error:
                # a queue that others made otherwise is no bus that is away: what the broker says has to be seen
                said = isinstance(error, oslo_messaging.MessageDeliveryFailure)
                raise BusUnavailable(verb="notify", detail=str(error) if said else _why(error)) from error

    def close(self) -> None:
        self._transport.cleanup()


class _Serving:
    """Begins once the bus is there, and ends whether it ever was."""

    def __init__(self, bus: Bus, make: Callable[[], Any], name: str) -> None:
        self._bus = bus
        self._make = make
        self._name = name
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._tried = threading.Event()
        self._server: Any = None
        self._thread = threading.Thread(target=self._work, name=f"begin {name}", daemon=True)

    def begin(self) -> None:
        self._thread.start()
        self._tried.wait(_AT_ONCE)

    def end(self) -> None:
        with self._lock:
            self._over.set()
        if self._server is not None:
            _stop(self._server)

    def _work(self) -> None:
        said = ""
        while not self._over.is_set():
            try:
                self._start()
            except (BusUnavailable, *_AWAY) as error:
                detail = _why(error)
                if detail != said:
                    _log.warning("%s is not to be heard yet: %s", self._name, detail, extra={"action": "listen"})
                said = detail
                self._tried.set()
                self._over.wait(_LOOK)
                continue
            self._tried.set()
            if said:
                _log.info("%s has found the bus", self._name, extra={"action": "listen"})
            return

    def _start(self) -> None:
        # first whether it is there: otherwise this would wait for it, whatever happens
        self._bus.look()
        server = self._make()
        server.start()
        with self._lock:
            if not self._over.is_set():
                self._server = server
        if self._server is None:  # it was over meanwhile
            _stop(server)


def _stop(server: Any) -> None:
    server.stop()
    server.wait()


class Caller:
    """Made by `Bus.to`."""

    def __init__(self, bus: Bus, client: Any, patience: float) -> None:
        self._bus = bus
        self._client = client
        self._patience = patience

    def call(self, verb: Verb[Question, Answer], question: Question, patience: float | None = None) -> Answer:
        """Ask, and wait for the answer. Raises `BusUnavailable`, `BusFailed`, and what the far side raises."""
        until = time.monotonic() + (patience or self._patience)
        try:
            self._bus.open(until - time.monotonic())
            told = self.ask(verb, question, max(0.01, until - time.monotonic()))
        except oslo_messaging.MessagingTimeout as error:
            raise BusUnavailable(verb=verb.name, detail="nobody answered in time") from error
        except _AWAY as error:
            raise BusUnavailable(verb=verb.name, detail=_why(error)) from error
        except BusUnavailable as error:
            raise BusUnavailable(**{**error.fields, "verb": verb.name}) from error
        if "error" in told:
            raise _raised(told["error"], told["fields"])
        return verb.answer.decode(told["body"])

    def cast(self, verb: Verb[Question, Any], question: Question) -> bool:
        """Say it, and go on. False: the bus is away. True does not mean that anybody heard it."""
        try:
            self.send(verb, question)
        except BusUnavailable:
            return False
        return True

    def ask(self, verb: Verb[Any, Any], question: msgspec.Struct, timeout: float) -> Any:
        """What oslo.messaging brings and raises."""
        return self._client.prepare(timeout=timeout, retry=0).call({}, "carry", verb=verb.name, body=_encode(question))

    def send(self, verb: Verb[Any, Any], question: msgspec.Struct) -> None:
        """As `cast`. Raises `BusUnavailable`."""
        try:
            self._client.prepare(retry=0).cast({}, "carry", verb=verb.name, body=_encode(question))
        except (*_AWAY, oslo_messaging.MessagingTimeout) as error:
            raise BusUnavailable(verb=verb.name, detail=_why(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, BusUnavailable):
        return str(error.fields["detail"])
    return f"the bus refuses us: {error}" if isinstance(error, _REFUSED) else "the bus is away"


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
