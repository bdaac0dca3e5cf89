"""Calls over the message bus: within one process, and over a real RabbitMQ."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from raksha.errors import BusFailed, BusUnavailable, VmBusy
from raksha.rpc import Bus, Nothing, Verb
from tests.bed.rabbitmq import RabbitMq


class Sum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    numbers: list[int]
    pause: float = 0.0


class Result(msgspec.Struct, frozen=True):
    total: int
    server: str


class Odd(msgspec.Struct, frozen=True):
    numbers: str


ADD = Verb("add", Sum, Result)
FORGED = Verb("add", Odd, Result)
FAIL = Verb("fail", Sum, Nothing)
CRASH = Verb("crash", Sum, Nothing)
NOTE = Verb("note", Sum, Nothing)
UNHEARD = Verb("unheard", Sum, Nothing)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    made = RabbitMq(tmp_path_factory.mktemp("rabbit"))
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture(params=["fake", "rabbit"])
def bus(request: pytest.FixtureRequest) -> Iterator[Bus]:
    url = request.getfixturevalue("broker").url if request.param == "rabbit" else "fake://"
    made = Bus(url, patience=10)
    yield made
    made.close()


class Far:
    """The far side."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.noted: list[Sum] = []
        self.handlers = {ADD: self.add, FAIL: self.fail, CRASH: self.crash, NOTE: self.note}

    def add(self, question: Sum) -> Result:
        time.sleep(question.pause)
        return Result(sum(question.numbers), self.name)

    def fail(self, question: Sum) -> None:
        raise VmBusy(vm="web", detail=Path("/somewhere"), number=question.numbers[0])

    def crash(self, _question: Sum) -> None:
        raise ZeroDivisionError("secret detail")

    def note(self, question: Sum) -> None:
        self.noted.append(question)


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid4().hex}"


def test_asks_and_answers(bus: Bus, topic: str) -> None:
    with bus.serve(topic, "one", Far("one").handlers):
        assert bus.to(topic).call(ADD, Sum([1, 2, 3])) == Result(6, "one")
        assert bus.to(topic).call(NOTE, Sum([])) == Nothing()


def test_errors_arrive_as_they_were(bus: Bus, topic: str) -> None:
    with bus.serve(topic, "one", Far("one").handlers), pytest.raises(VmBusy) as caught:
        bus.to(topic).call(FAIL, Sum([7]))
    assert caught.value.fields == {"vm": "web", "detail": "/somewhere", "number": 7}
    assert "web" in str(caught.value)


def test_what_is_not_meant_to_fail_tells_nothing(bus: Bus, topic: str) -> None:
    with bus.serve(topic, "one", Far("one").handlers), pytest.raises(BusFailed) as caught:
        bus.to(topic).call(CRASH, Sum([]))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("numbers", ["text", "[1"])
def test_what_is_no_such_record_is_refused(bus: Bus, topic: str, numbers: str) -> None:
    with bus.serve(topic, "one", Far("one").handlers):
        with pytest.raises(BusFailed, match="numbers"):
            bus.to(topic).call(FORGED, Odd(numbers))
        with pytest.raises(BusFailed, match="unheard"):
            bus.to(topic).call(UNHEARD, Sum([]))


def test_several_serve_one_topic_and_each_by_name(bus: Bus, topic: str) -> None:
    with ExitStack() as stack:
        for name in ("one", "two"):
            stack.enter_context(bus.serve(topic, name, Far(name).handlers))
        assert {bus.to(topic).call(ADD, Sum([1])).server for _ in range(10)} == {"one", "two"}
        assert {bus.to(topic, "two").call(ADD, Sum([1])).server for _ in range(5)} == {"two"}


def test_many_at_once(bus: Bus, topic: str) -> None:
    totals: dict[int, int] = {}

    def ask(number: int) -> None:
        totals[number] = bus.to(topic).call(ADD, Sum([number, 1], pause=0.05)).total

    with bus.serve(topic, "one", Far("one").handlers):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert totals == {number: number + 1 for number in range(20)}


def test_nobody_answers(bus: Bus, topic: str) -> None:
    with pytest.raises(BusUnavailable):
        bus.to(topic).call(ADD, Sum([1]), patience=1)
    with bus.serve(topic, "one", Far("one").handlers), pytest.raises(BusUnavailable):
        bus.to(topic).call(ADD, Sum([1], pause=2), patience=0.5)


def test_casts_come_by_themselves(bus: Bus, topic: str) -> None:
    far = Far("one")
    with bus.serve(topic, "one", far.handlers):
        assert bus.to(topic, "one").cast(NOTE, Sum([5]))
        deadline = time.monotonic() + 10
        while not far.noted and time.monotonic() < deadline:
            time.sleep(0.01)
    assert far.noted == [Sum([5])]


@pytest.mark.parametrize("url", ["smoke://signals", "nonsense"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(BusFailed):
        Bus(url)


def test_a_broker_that_goes_and_comes_back(tmp_path: Path, topic: str) -> None:
    """Calls say within their time that the bus is away; both sides find it again without anybody's help."""
    broker = RabbitMq(tmp_path)
    broker.prepare()
    broker.start()
    bus = Bus(broker.url, patience=5)
    try:
        with bus.serve(topic, "one", Far("one").handlers):
            assert bus.to(topic).call(ADD, Sum([1])).total == 1
            broker.kill()
            before = time.monotonic()
            with pytest.raises(BusUnavailable):
                bus.to(topic).call(ADD, Sum([2]), patience=3)
            assert not bus.to(topic).cast(NOTE, Sum([3]))
            assert time.monotonic() - before < 20
            broker.start()
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert bus.to(topic).call(ADD, Sum([4]), patience=2).total == 4
                    break
                except BusUnavailable:
                    assert time.monotonic() < deadline
    finally:
        bus.close()
        broker.stop()


def test_a_broker_that_comes_later(tmp_path: Path, topic: str) -> None:
    """While it is away nobody waits for it; once it is there, whoever wanted to answer does."""
    broker = RabbitMq(tmp_path)
    broker.prepare()
    bus = Bus(broker.url, patience=5)
    try:
        before = time.monotonic()
        assert not bus.to(topic).cast(NOTE, Sum([1]))
        with pytest.raises(BusUnavailable, match=r"add .* away"):
            bus.to(topic).call(ADD, Sum([1]))
        with bus.serve(topic, "two", Far("two").handlers):
            pass
        with bus.serve(topic, "one", Far("one").handlers):
            assert time.monotonic() - before < 4
            broker.start()
            began = time.monotonic()
            assert answered(bus, topic) == Result(2, "one")
            assert time.monotonic() - began < 10
    finally:
        bus.close()
        broker.stop()


def answered(bus: Bus, topic: str) -> Result:
    deadline = time.monotonic() + 60
    while True:
        try:
            return bus.to(topic).call(ADD, Sum([2]), patience=1)
        except BusUnavailable:
            assert time.monotonic() < deadline


def test_a_broker_that_takes_connections_and_says_nothing(topic: str) -> None:
    """Whoever calls for the first time is back in time all the same."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bus = Bus(f"rabbit://raksha:secret@127.0.0.1:{silent.getsockname()[1]}/")
        before = time.monotonic()
        with pytest.raises(BusUnavailable):
            bus.to(topic).call(ADD, Sum([1]), patience=1)
        assert time.monotonic() - before < 3
        with bus.serve(topic, "one", Far("one").handlers):
            pass
        assert time.monotonic() - before < 10
        bus.close()


def test_a_login_that_is_refused(broker: RabbitMq, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus(broker.url.replace("secret", "other"), patience=5)
    assert not bus.to(topic).cast(NOTE, Sum([1]))
    with pytest.raises(BusUnavailable, match=r"refuses us.*ACCESS_REFUSED"):
        bus.to(topic).call(ADD, Sum([1]))
    with bus.serve(topic, "one", Far("one").handlers):
        pass
    assert "one of topic" in caplog.text
    assert "refuses us" in caplog.text
    bus.close()
