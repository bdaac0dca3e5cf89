"""Which points stay: against a model that works bucket by bucket from the oldest, and the promises of `decide`."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raksha.errors import RetentionInvalid, ZoneUnknown
from raksha.retention import Point, Retention, beyond_last, check, decide

ZONES = ("UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
KINDS = ("keep_last", "hourly", "daily", "weekly", "monthly", "yearly")


def at(*moment: int, zone: str = "UTC") -> int:
    return int(datetime(*moment, tzinfo=ZoneInfo(zone)).timestamp())


def kept(points: list[Point], retention: Retention) -> set[str]:
    return {each.point.id for each in decide(points, retention) if each.kept}


@st.composite
def many_points(draw: st.DrawFn) -> list[Point]:
    """From dense (minutes apart, on the days on which clocks change) to sparse (years)."""
    start = draw(st.sampled_from([at(2026, 3, 28, 20), at(2026, 10, 24, 20), at(2025, 12, 27), at(2026, 4, 4, 10)]))
    gap = draw(st.sampled_from([600, 3600, 6 * 3600, 86400, 20 * 86400]))
    offsets = draw(st.lists(st.integers(0, 40 * gap), max_size=25))
    flags = st.booleans() if draw(st.booleans()) else st.just(True)
    return [
        Point(f"run-{number}", start + offset, protected=draw(st.integers(0, 7)) == 0, restorable=draw(flags))
        for number, offset in enumerate(offsets)
    ]


counts = st.sampled_from([0, 0, 1, 2, 3, 7])
retentions = st.builds(Retention, zone=st.sampled_from(ZONES), **dict.fromkeys(KINDS, counts)).filter(
    lambda each: any(getattr(each, kind) for kind in KINDS)
)


def model(points: list[Point], retention: Retention) -> set[str]:
    """From the calendar's side: for each kind the last N buckets that have a point, of each its last."""
    whole = [point for point in points if point.restorable]
    if not whole:
        return {point.id for point in points}

    def newest(some: list[Point]) -> Point:
        return max(some, key=lambda point: (point.taken_at, point.id))

    zone = ZoneInfo(retention.zone)

    def bucket(kind: str, point: Point) -> tuple[object, ...]:
        local = datetime.fromtimestamp(point.taken_at, zone)
        year, week, _ = local.isocalendar()
        return {
            "keep_last": (point.taken_at, point.id),
            # the instant at which this hour of this offset began
            "hourly": (point.taken_at - local.minute * 60 - local.second, local.utcoffset()),
            "daily": (local.year, local.month, local.day),
            "weekly": (year, week),
            "monthly": (local.year, local.month),
            "yearly": (local.year,),
        }[kind]

    stay = {point.id for point in points if point.protected} | {newest(whole).id}
    for kind in KINDS:
        buckets = sorted({bucket(kind, point) for point in whole})
        for one in buckets[max(0, len(buckets) - getattr(retention, kind)) :]:
            stay.add(newest([point for point in whole if bucket(kind, point) == one]).id)
    return stay


@settings(max_examples=300, deadline=None)
@given(many_points(), retentions)
def test_it_keeps_what_the_model_keeps(points: list[Point], retention: Retention) -> None:
    assert kept(points, retention) == model(points, retention)


@settings(max_examples=200, deadline=None)
@given(many_points(), retentions, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_asking_again_changes_nothing(
    points: list[Point], retention: Retention, random: Random
) -> None:
    decisions = decide(points, retention)
    shuffled = list(points)
    random.shuffle(shuffled)
    assert decide(shuffled, retention) == decisions
    assert Counter(each.point.id for each in decisions) == Counter(point.id for point in points)
    left = [each.point for each in decisions if each.kept]
    assert all(each.kept for each in decide(left, retention))


@settings(max_examples=200, deadline=None)
@given(many_points(), retentions, st.integers(0, 400 * 86400), st.booleans(), st.booleans())
def test_a_newer_point_brings_none_back(
    points: list[Point], retention: Retention, later: int, protected: bool, restorable: bool
) -> None:
    newest = max((point.taken_at for point in points), default=at(2026, 1, 1))
    added = Point("run-z", newest + later, protected, restorable)
    assert kept([*points, added], retention) - {"run-z"} <= kept(points, retention)


@settings(max_examples=200, deadline=None)
@given(many_points(), retentions)
def test_every_decision_has_its_reason_and_a_restorable_point_stays(points: list[Point], retention: Retention) -> None:
    decisions = decide(points, retention)
    assert all(each.reasons for each in decisions)
    assert all(each.kept for each in decisions if each.point.protected)
    if any(point.restorable for point in points):
        assert any(each.kept and each.point.restorable for each in decisions)
        lost = [each for each in decisions if not each.point.restorable and not each.point.protected]
        assert all((each.kept, each.reasons) == (False, ("not restorable",)) for each in lost)
    else:
        assert all(each.kept for each in decisions)


def test_each_point_says_why() -> None:
    points = [
        Point("a", at(2026, 9, 30, 23, zone="Europe/Paris")),
        Point("b", at(2026, 11, 19, 22, 30, zone="Europe/Paris")),
        Point("c", at(2026, 11, 20, 12, zone="Europe/Paris")),
        Point("d", at(2026, 11, 20, 22, 30, zone="Europe/Paris")),
        Point("e", at(2026, 11, 20, 23, zone="Europe/Paris"), restorable=False),
        Point("f", at(2026, 11, 1, zone="Europe/Paris"), protected=True),
    ]
    told = {each.point.id: (each.kept, each.reasons) for each in decide(
        points, Retention(keep_last=1, daily=2, monthly=2, zone="Europe/Paris")
    )}  # fmt: skip
    assert told == {
        "a": (True, ("monthly 2026-09",)),
        "f": (True, ("protected",)),
        "b": (True, ("daily 2026-11-19",)),
        "c": (False, ("not among the last 1", "daily 2026-11-20: d is newer", "monthly 2026-11: d is newer")),
        "d": (True, ("newest restorable", "last 1 of 1", "daily 2026-11-20", "monthly 2026-11")),
        "e": (False, ("not restorable",)),
    }


def test_days_are_those_of_the_zone() -> None:
    """23:30 and 00:30 in New York are one day in Kolkata."""
    points = [Point("late", at(2026, 6, 1, 23, 30, zone="America/New_York")),
              Point("early", at(2026, 6, 2, 0, 30, zone="America/New_York"))]  # fmt: skip
    assert kept(points, Retention(daily=2, zone="America/New_York")) == {"late", "early"}
    assert kept(points, Retention(daily=2, zone="Asia/Kolkata")) == {"early"}


def test_weeks_are_iso_weeks() -> None:
    """2027-01-01 is a Friday in the week 2026-W53."""
    points = [Point("monday", at(2026, 12, 28)), Point("friday", at(2027, 1, 1)), Point("next", at(2027, 1, 4))]
    reasons = {each.point.id: each.reasons for each in decide(points, Retention(weekly=3))}
    assert reasons == {
        "monday": ("weekly 2026-W53: friday is newer",),
        "friday": ("weekly 2026-W53",),
        "next": ("newest restorable", "weekly 2027-W01"),
    }


def test_an_hour_that_comes_twice_is_two_hours() -> None:
    points = [Point("summer", at(2026, 10, 25, 0, 30)), Point("winter", at(2026, 10, 25, 1, 30))]
    reasons = {each.point.id: each.reasons[-1] for each in decide(points, Retention(hourly=2, zone="Europe/Paris"))}
    assert reasons == {"summer": "hourly 2026-10-25 02:00 +0200", "winter": "hourly 2026-10-25 02:00 +0100"}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Retention(), RetentionInvalid),
        (Retention(keep_last=3, daily=-1), RetentionInvalid),
        (Retention(daily=1, zone="Europe/Nowhere"), ZoneUnknown),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Retention, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(wrong)
    with pytest.raises(error):
        decide([Point("a", 0)], wrong)


def test_beyond_last_gives_the_oldest() -> None:
    assert beyond_last([1, 2, 3, 4], 3) == [1]
    assert beyond_last([1, 2], 3) == []
    with pytest.raises(ValueError):
        beyond_last([1], 0)
