"""What people write on a command line, and what they read: schedules, sizes, lengths, progress."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest

from raksha.client import progress, scheduling, words
from raksha.client.errors import WrongUse
from raksha.client.records import Progress, Run, Said, Schedule
from raksha.cron import parse


@pytest.mark.parametrize(
    ("said", "cron", "brief"),
    [
        ({"every": "day", "at": "02:00"}, "0 2 * * *", "every day at 02:00 UTC"),
        ({"every": "Day", "at": "2:05"}, "5 2 * * *", "every day at 02:05 UTC"),
        ({"every": "weekday", "at": "22:30"}, "30 22 * * 1-5", "every weekday at 22:30 UTC"),
        ({"every": "hour"}, "0 * * * *", "every hour at :00 UTC"),
        ({"every": "hour", "at": ":15"}, "15 * * * *", "every hour at :15 UTC"),
        ({"every": "week", "on": "sun", "at": "22:30"}, "30 22 * * 0", "every Sunday at 22:30 UTC"),
        ({"every": "week", "on": "wed,Monday", "at": "22:30"}, "30 22 * * 1,3", "30 22 * * 1,3 UTC"),
        ({"every": "sunday", "at": "22:30"}, "30 22 * * 0", "every Sunday at 22:30 UTC"),
        ({"every": "month", "on": "1", "at": "00:00"}, "0 0 1 * *", "every month on 1 at 00:00 UTC"),
        ({"every": "month", "on": "1,15", "at": "00:00"}, "0 0 1,15 * *", "0 0 1,15 * * UTC"),
        ({"cron": "*/10 8-18 * * *"}, "*/10 8-18 * * *", "*/10 8-18 * * * UTC"),
    ],
)
def test_schedules_in_words(said: dict[str, str], cron: str, brief: str) -> None:
    assert scheduling.schedule(**said) == {"cron": cron}
    parse(cron)  # as the service understands it
    assert scheduling.brief(Schedule(cron=cron)) == brief


@pytest.mark.parametrize(("text", "seconds"), [("6h", 21600), ("90m", 5400), ("2 d", 172800), ("1w", 604800)])
def test_intervals(text: str, seconds: int) -> None:
    assert scheduling.schedule(every=text) == {"every": seconds}


def test_the_brief_of_others() -> None:
    assert scheduling.brief(None) == "by hand"
    assert scheduling.brief(Schedule(every=5400)) == "every 1 h 30 min"
    assert scheduling.brief(Schedule(cron="@daily")) == "@daily UTC"


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"every": "day"}, "--at is missing"),
        ({"every": "day", "at": "25:00"}, "no such time"),
        ({"every": "day", "at": ":15"}, "no such time"),
        ({"every": "hour", "at": "02:15"}, "no such time"),
        ({"every": "day", "at": "02:00", "on": "sun"}, "--on does not go with"),
        ({"every": "week", "at": "02:00"}, "needs --on"),
        ({"every": "week", "at": "02:00", "on": "someday"}, "no day of the week"),
        ({"every": "month", "at": "02:00", "on": "32"}, "no day of the month"),
        ({"every": "blue moon"}, "not understood"),
        ({"every": "6h", "at": "02:00"}, "from run to run"),
        ({"at": "02:00"}, "need --every"),
        ({"cron": "@daily", "every": "day"}, "by itself"),
    ],
)
def test_schedules_that_say_nothing(said: dict[str, str], complaint: str) -> None:
    with pytest.raises(WrongUse, match=complaint) as caught:
        scheduling.schedule(**said)
    assert caught.value.hint


def test_what_is_said_anew_takes_the_place_of_what_was() -> None:
    before = {"cron": "0 2 * * *", "zone": "Europe/Paris", "jitter": 5}
    assert scheduling.merged(before, {"jitter": 7}) == {**before, "jitter": 7}
    assert scheduling.merged(before, {"every": 60}) == {"every": 60, "zone": "Europe/Paris", "jitter": 5}
    assert scheduling.merged(None, {"cron": "@daily"}) == {"cron": "@daily"}


@pytest.mark.parametrize(("text", "size"), [("20M", 20 << 20), ("65536", 65536), ("1 GiB", 1 << 30), ("3kb", 3072)])
def test_sizes(text: str, size: int) -> None:
    assert words.size(text, "--x") == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "20X"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(WrongUse):
        words.size(text, "--x")
    with pytest.raises(WrongUse):
        words.length(text, "--x")


def test_for_people() -> None:
    assert [words.human_size(size) for size in (0, 999, 1000, 1 << 20, 5 << 30, 3 << 42)] == [
        "0 B", "999 B", "0.977 KiB", "1 MiB", "5 GiB", "12 TiB",
    ]  # fmt: skip
    assert [words.human_length(seconds) for seconds in (0, 59.6, 90, 90000, 86400)] == [
        "0 s", "1 min", "1 min 30 s", "1 d 1 h", "1 d",
    ]  # fmt: skip
    assert words.plain_moment(datetime(2027, 1, 31, 18, tzinfo=UTC)) == "2027-01-31T18:00:00Z"
    assert words.plain("a\x1b[31mb\nc") == "a [31mb c"


def run(state: str, done: int = 0, total: int = 0, **more: Any) -> Run:
    percent = done * 100 // total if total else None
    return Run(id="a", backupjob_id="b", state=state, **more,
               progress=Progress(bytes_total=total, bytes_done=done, percent=percent))  # fmt: skip


def test_plain_lines() -> None:
    stream, seconds = io.StringIO(), iter(range(100))
    lines = progress.Lines("run a", stream, lambda: float(next(seconds)))
    waiting = Said(code="x", message="no agent\x1b is there")
    story = [run("queued", queued_reason=waiting), run("running"), run("running", 1 << 20, 100 << 20),
             run("running", 41 << 20, 100 << 20), run("running", 42 << 20, 100 << 20),
             run("available", 5, 5)]  # fmt: skip
    for found in story:
        lines.show(found)
    assert stream.getvalue().splitlines() == [
        "run a: queued (no agent  is there)",
        "run a: running",
        "run a: 41 %, 41 MiB of 100 MiB, 13.7 MiB/s, 4 s left",
        "run a: available",
        "run a: 100 %, 5 B of 5 B, 1 B/s",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    display = progress.display("run a", stream)
    assert isinstance(display, progress.Bar) and isinstance(progress.display("x", io.StringIO()), progress.Lines)
    for found in (run("queued"), run("running", 0, 1000), run("running", 500, 1000), run("running", 1500, 1000)):
        display.show(found)
    display.close()
    shown = stream.getvalue()
    assert "run a: queued" in shown and "run a: running" in shown and "50%" in shown and "B/s" in shown
