"""When a job runs: against a model that walks minute by minute, on the days on which the clocks change."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raksha.cron import parse
from raksha.errors import BadCron, RakshaError, ScheduleInvalid, ScheduleNeverFires, ScheduleTooOften, ZoneUnknown
from raksha.schedule import CatchUp, Schedule, Window, check, due, fires, next_after, preview, wants_full
from raksha.schedule_words import in_words
from raksha.zones import names, zone

ZONES = ("UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
NIGHT = Window.parse("22:00-06:00")
#: local days around changes of the clock in these zones, a leap day, and plain ones
DAYS = [date(2026, 3, 28), date(2026, 10, 24), date(2026, 3, 7), date(2026, 10, 31), date(2026, 4, 4),
        date(2026, 10, 3), date(2028, 2, 28), date(2026, 12, 30), date(2026, 6, 13)]  # fmt: skip


def at(*moment: int, zone: str = "UTC", fold: int = 0) -> int:
    return int(datetime(*moment, fold=fold, tzinfo=ZoneInfo(zone)).timestamp())


def times(schedule: Schedule, after: int, count: int) -> list[str]:
    """The next fires as the clock of UTC shows them."""
    return [f"{datetime.fromtimestamp(fire.at, UTC):%m-%d %H:%M}" for fire in preview(schedule, after, count)]


# -- a model of cron ----------------------------------------------------------------------------------


def field_holds(text: str, value: int) -> bool:
    """One field of crontab(5), numbers only, by looking at the text alone."""
    for part in text.split(","):
        span, _, step = part.partition("/")
        low, _, high = ("0", "", "99") if span == "*" else span.partition("-")
        origin = {"*": None}.get(span, int(low))
        if int(low) <= value <= int(high or low) and (value - (origin or 0)) % int(step or 1) == 0:
            return True
    return False


def wall_fires(text: str, wall: datetime) -> bool:
    minute, hour, day, month, weekday = text.split()
    if not (field_holds(minute, wall.minute) and field_holds(hour, wall.hour) and field_holds(month, wall.month)):
        return False
    number = wall.isoweekday() % 7
    on_day = field_holds(day, wall.day)
    on_weekday = field_holds(weekday, number) or (number == 0 and field_holds(weekday, 7))
    return (on_day and on_weekday) if "*" in day + weekday else (on_day or on_weekday)


def walked(text: str, zone_name: str, window: Window | None, first: date, days: int) -> list[int]:
    """Fires of the local days from `first` on: every minute that exists is shown by a clock going on in UTC; what the
    clock has never shown is owed and comes as long after the gap's start as it lies in it. Days of `*/N` start at 1, so
    the texts given have none there."""
    clock = ZoneInfo(zone_name)
    moment = datetime(first.year, first.month, first.day, tzinfo=clock).astimezone(UTC)
    last = first + timedelta(days=days)
    found: set[int] = set()
    shown: set[datetime] = set()
    before: datetime | None = None

    def fits(wall: datetime) -> bool:
        allowed = window is None or in_window(window, wall)
        return allowed and wall_fires(text, wall)

    while (wall := moment.astimezone(clock).replace(tzinfo=None)).date() < last:
        if before is not None:
            skipped = before + timedelta(minutes=1)
            for number in itertools.count():
                if skipped + timedelta(minutes=number) >= wall:
                    break
                if fits(skipped + timedelta(minutes=number)):
                    found.add(int(moment.timestamp()) + 60 * number)
        if wall not in shown and fits(wall):
            found.add(int(moment.timestamp()))
        shown.add(wall)
        before = wall
        moment += timedelta(minutes=1)
    return sorted(found)


def in_window(window: Window, wall: datetime) -> bool:
    opens, closes = str(window).split("-")
    now = f"{wall:%H:%M}"
    return opens <= now < closes if opens < closes else now >= opens or now < closes


def field(low: int, high: int, top: int = 5) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    span = st.tuples(number, number).map(sorted).map(lambda two: f"{two[0]}-{two[1]}")
    stepped = st.tuples(span, st.integers(1, top)).map(lambda two: f"{two[0]}/{two[1]}")
    part = st.one_of(number.map(str), span, stepped)
    return st.one_of(st.just("*"), st.lists(part, min_size=1, max_size=3).map(",".join))


minutes = st.one_of(st.sampled_from(["0", "30", "*/15", "*/7", "59", "0,30", "1-59/29"]), field(0, 59, 30))
hours = st.one_of(st.sampled_from(["*", "2", "1,2,3", "*/6", "0", "23", "1-4"]), field(0, 23))
expressions = st.tuples(minutes, hours, field(1, 31), st.one_of(st.just("*"), field(1, 12)), field(0, 7)).map(" ".join)
windows = st.one_of(
    st.none(),
    st.sampled_from(["22:00-06:00", "02:00-02:30", "01:45-03:15", "00:00-23:59", "12:00-13:00"]).map(Window.parse),
)


@settings(max_examples=50, deadline=None)
@given(expressions, st.sampled_from(ZONES), windows, st.sampled_from(DAYS))
def test_cron_fires_when_the_model_does(text: str, zone_name: str, window: Window | None, first: date) -> None:
    schedule = Schedule(cron=text, zone=zone_name, window=window)
    start = at(first.year, first.month, first.day, zone=zone_name)
    end = first + timedelta(days=3)
    upto = at(end.year, end.month, end.day, zone=zone_name)
    got = [fire.at for fire in itertools.takewhile(lambda fire: fire.at < upto, fires(schedule, start - 1))]
    assert got == walked(text, zone_name, window, first, 3)


@settings(max_examples=50, deadline=None)
@given(expressions, st.sampled_from(ZONES), st.sampled_from(DAYS), st.integers(0, 3 * 86400), st.integers(0, 86400))
def test_next_is_the_first_of_those_that_are_later(
    text: str, zone_name: str, first: date, offset: int, jitter: int
) -> None:
    """Asked at any second, in the skipped and the doubled hour too, it gives what the sequence gives."""
    schedule = Schedule(cron=text, zone=zone_name, jitter=jitter, seed="job")
    start = at(first.year, first.month, first.day)
    asked = start + offset
    sequence = (fire.at for fire in fires(schedule, start - 1))
    expected = next((time for time in sequence if time > asked), None)
    assert next_after(schedule, asked) == expected
    assert expected is None or expected > asked


# -- the clock changes --------------------------------------------------------------------------------


def test_an_hour_that_does_not_exist_fires_once_at_the_right_moment() -> None:
    """At 02:00 on 2026-03-29 the clock of Paris goes to 03:00; 02:30 is an hour and a half after 01:00."""
    daily = Schedule(cron="30 2 * * *", zone="Europe/Paris")
    assert times(daily, at(2026, 3, 28), 3) == ["03-28 01:30", "03-29 01:30", "03-30 00:30"]
    half_hours = Schedule(cron="*/30 * * * *", zone="Europe/Paris")
    assert times(half_hours, at(2026, 3, 29, 0, 15), 4) == ["03-29 00:30", "03-29 01:00", "03-29 01:30", "03-29 02:00"]


def test_an_hour_that_comes_twice_fires_once() -> None:
    daily = Schedule(cron="30 2 * * *", zone="Europe/Paris")
    assert times(daily, at(2026, 10, 24, 12), 2) == ["10-25 00:30", "10-26 01:30"]
    # asked between the two 02:30
    assert times(daily, at(2026, 10, 25, 1), 1) == ["10-26 01:30"]


def test_half_an_hour_of_summer_time() -> None:
    """Lord Howe: at 02:00 on 2026-10-04 to 02:30, at 02:00 on 2026-04-05 back to 01:30."""
    daily = Schedule(cron="15 2 * * *", zone="Australia/Lord_Howe")
    assert times(daily, at(2026, 10, 3, 12), 2) == ["10-03 15:45", "10-04 15:15"]
    twice = Schedule(cron="45 1 * * *", zone="Australia/Lord_Howe")
    assert times(twice, at(2026, 4, 4, 12), 2) == ["04-04 14:45", "04-05 15:15"]


def test_a_whole_day_that_does_not_exist() -> None:
    """Samoa had no 2011-12-30: its noon comes together with that of the 31st, once."""
    daily = Schedule(cron="0 12 * * *", zone="Pacific/Apia")
    assert times(daily, at(2011, 12, 29), 3) == ["12-29 22:00", "12-30 22:00", "12-31 22:00"]


@settings(max_examples=50, deadline=None)
@given(st.integers(60, 30 * 86400), st.integers(0, 2**31), st.integers(0, 2**31), st.sampled_from(ZONES))
def test_an_interval_is_elapsed_time(every: int, anchor: int, after: int, zone_name: str) -> None:
    got = [fire.at for fire in preview(Schedule(every=every, anchor=anchor, zone=zone_name), after, 50)]
    assert got[0] == anchor if after < anchor else after < got[0] <= after + every
    assert all((time - anchor) % every == 0 for time in got)
    assert {later - time for time, later in itertools.pairwise(got)} == {every}


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([300, 1800, 3600, 5 * 3600, 86400]), st.integers(0, 86400), st.sampled_from(ZONES), windows,
    st.sampled_from(DAYS),
)  # fmt: skip
def test_an_interval_with_a_window_fires_always_and_only_inside(
    every: int, phase: int, zone_name: str, window: Window | None, first: date
) -> None:
    start = at(first.year, first.month, first.day)
    schedule = Schedule(every=every, anchor=start + phase, zone=zone_name, window=window)
    got = [fire.at for fire in itertools.takewhile(lambda fire: fire.at < start + 4 * 86400, fires(schedule, start))]
    clock = ZoneInfo(zone_name)
    every_one = [time for time in range(start + phase, start + 4 * 86400, every) if time > start]
    inside = [time for time in every_one if not window or in_window(window, datetime.fromtimestamp(time, clock))]
    assert got == inside


def test_a_clock_that_goes_back_opens_and_closes_the_window() -> None:
    """New York, 2026-11-01: after 01:59 (05:59 UTC) comes 01:00."""
    half_hours = Schedule(every=1800, anchor=0, zone="America/New_York", window=Window.parse("00:30-01:30"))
    assert times(half_hours, at(2026, 11, 1), 5) == [
        "11-01 04:30", "11-01 05:00", "11-01 06:00", "11-02 05:30", "11-02 06:00"]  # fmt: skip
    late = Window.parse("01:45-03:15")
    for seed in range(30):
        jittered = Schedule(cron="59 1 * * *", zone="America/New_York", window=late, jitter=600, seed=str(seed))
        fire = preview(jittered, at(2026, 11, 1), 1)[0]
        assert at(2026, 11, 1, 5, 59) == fire.scheduled <= fire.at < at(2026, 11, 1, 6)


# -- cron's text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weekdays"),
    [
        ("0", {"Sun"}), ("7", {"Sun"}), ("1", {"Mon"}), ("sun", {"Sun"}),
        ("MON-fri", {"Mon", "Tue", "Wed", "Thu", "Fri"}), ("5-7", {"Fri", "Sat", "Sun"}), ("sat-sun", {"Sat", "Sun"}),
        ("sun-mon", {"Sun", "Mon"}), ("1,wed", {"Mon", "Wed"}),
        ("*/2", {"Sun", "Tue", "Thu", "Sat"}), ("1-5/2", {"Mon", "Wed", "Fri"}), ("0-7/7", {"Sun"}),
    ],
)  # fmt: skip
def test_weekdays_are_those_of_cron(text: str, weekdays: set[str]) -> None:
    week = preview(Schedule(cron=f"0 12 * * {text}"), at(2026, 11, 1), 14)
    assert {f"{datetime.fromtimestamp(fire.at, UTC):%a}" for fire in week} == weekdays


def test_a_day_fits_day_or_weekday_where_both_are_restricted_else_both() -> None:
    assert times(Schedule(cron="0 0 13 * 5"), at(2026, 11, 1), 4) == [
        "11-06 00:00", "11-13 00:00", "11-20 00:00", "11-27 00:00"]  # fmt: skip
    assert times(Schedule(cron="0 0 15 * 5"), at(2026, 11, 7), 3) == ["11-13 00:00", "11-15 00:00", "11-20 00:00"]
    # every second day of the month, if it is a Friday
    assert times(Schedule(cron="0 0 */2 * 5"), at(2026, 11, 1), 3) == ["11-13 00:00", "11-27 00:00", "12-11 00:00"]
    assert times(Schedule(cron="0 0 30 2 1"), at(2027, 1, 31), 2) == ["02-01 00:00", "02-08 00:00"]


def test_names_macros_and_leap_days() -> None:
    assert parse("@Weekly") == parse("0 0 * * sun")
    assert parse("0 0 1 jan,JUL *").months == (1, 7)
    leap = preview(Schedule(cron="0 0 29 2 *"), at(2090, 1, 1), 3)
    assert [datetime.fromtimestamp(fire.at, UTC).year for fire in leap] == [2092, 2096, 2104]


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 * ", "* * * * 8",
     "5/15 * * * *", "*/0 * * * *", "30-10 * * * *", "* * * * fri-mon", "* * * * ?", "* * L * *", "* * 15W * *",
     "* * * * 1#2", "1,,2 * * * *", "-5 * * * *", "* * * * mo", "@reboot", "٣ * * * *", "99999999999999999999 * * * *"],
)  # fmt: skip
def test_what_is_no_cron_expression_is_refused(text: str) -> None:
    with pytest.raises(BadCron) as caught:
        check(Schedule(cron=text), at(2026, 1, 1), 60)
    assert caught.value.fields["cron"] == text


# -- start, end, jitter, full ---------------------------------------------------------------------------


def test_start_and_end_are_inside() -> None:
    schedule = Schedule(cron="0 * * * *", start=at(2026, 5, 1, 10), end=at(2026, 5, 1, 12))
    assert times(schedule, 0, 9) == ["05-01 10:00", "05-01 11:00", "05-01 12:00"]
    assert next_after(schedule, at(2026, 5, 1, 12)) is None


@settings(max_examples=50, deadline=None)
@given(expressions, st.sampled_from(ZONES), windows, st.integers(1, 86400), st.text(max_size=5), st.sampled_from(DAYS))
def test_jitter_keeps_its_bounds(
    text: str, zone_name: str, window: Window | None, jitter: int, seed: str, first: date
) -> None:
    schedule = Schedule(cron=text, zone=zone_name, window=window, jitter=jitter, seed=seed)
    start = at(first.year, first.month, first.day)
    got = preview(schedule, start, 20)
    assert got == preview(schedule, start, 20)
    for fire, following in itertools.pairwise(got):
        assert fire.scheduled <= fire.at <= fire.scheduled + jitter
        assert fire.at < following.scheduled
    clock = ZoneInfo(zone_name)
    for fire in got:
        scheduled, moved = (datetime.fromtimestamp(time, clock) for time in (fire.scheduled, fire.at))
        if window and in_window(window, scheduled):
            assert in_window(window, moved)


def test_jitter_spreads_jobs_and_days() -> None:
    delays = {
        fire.at - fire.scheduled
        for seed in range(50)
        for fire in preview(Schedule(cron="0 0 * * *", jitter=3600, seed=str(seed)), 0, 4)
    }
    assert len(delays) > 150
    assert min(delays) < 300
    assert max(delays) > 3300


def test_full_runs_have_times_of_their_own_or_a_number() -> None:
    schedule = Schedule(cron="0 22 * * 1-5", full_cron="0 22 * * 0,1")
    week = [(f"{datetime.fromtimestamp(fire.at, UTC):%a}", fire.full) for fire in preview(schedule, at(2026, 11, 1), 4)]
    assert week == [("Sun", True), ("Mon", True), ("Tue", False), ("Wed", False)]
    assert wants_full(schedule, on_full_cron=True, since_full=0)
    assert not wants_full(schedule, on_full_cron=False, since_full=99)
    assert wants_full(schedule, on_full_cron=False, since_full=None)
    weekly = Schedule(cron="0 22 * * *", full_every=7)
    assert [wants_full(weekly, False, since) for since in (0, 5, 6, 7)] == [False, False, True, True]


# -- what is due --------------------------------------------------------------------------------------

HOURLY = Schedule(cron="0 * * * *")


def test_what_is_on_time_runs() -> None:
    got = due(HOURLY, at(2026, 5, 1, 9), at(2026, 5, 1, 10, 0, 3))
    assert (got.at, got.missed, got.upto, got.again) == (
        at(2026, 5, 1, 10), 0, at(2026, 5, 1, 10), at(2026, 5, 1, 11))  # fmt: skip


def test_before_its_time_nothing_runs() -> None:
    got = due(HOURLY, at(2026, 5, 1, 9), at(2026, 5, 1, 9, 59, 59))
    assert (got.at, got.missed, got.upto, got.again) == (None, 0, at(2026, 5, 1, 9), at(2026, 5, 1, 10))
    # a clock that went back
    assert due(HOURLY, at(2026, 5, 1, 9), at(2026, 5, 1, 7)).at is None


def test_after_a_downtime_the_latest_runs_once() -> None:
    got = due(HOURLY, at(2026, 5, 1, 9), at(2026, 5, 1, 14, 30))
    assert (got.at, got.missed, got.upto, got.again) == (
        at(2026, 5, 1, 14), 4, at(2026, 5, 1, 14), at(2026, 5, 1, 15))  # fmt: skip
    assert due(HOURLY, got.upto, at(2026, 5, 1, 14, 30)).at is None


def test_or_is_skipped_unless_it_is_just_due() -> None:
    skipping = Schedule(cron="0 * * * *", catch_up=CatchUp.SKIP)
    got = due(skipping, at(2026, 5, 1, 9), at(2026, 5, 1, 14, 30), grace=300)
    assert (got.at, got.missed, got.upto, got.again) == (None, 5, at(2026, 5, 1, 14), at(2026, 5, 1, 15))
    got = due(skipping, at(2026, 5, 1, 9), at(2026, 5, 1, 14, 5), grace=300)
    assert (got.at, got.missed) == (at(2026, 5, 1, 14), 4)


def test_what_was_missed_waits_for_the_window() -> None:
    nightly = Schedule(cron="0 23 * * *", zone="Europe/Paris", window=NIGHT)
    last, noon = at(2026, 4, 30, 23, zone="Europe/Paris"), at(2026, 5, 2, 12, zone="Europe/Paris")
    got = due(nightly, last, noon)
    assert (got.at, got.missed, got.upto, got.again) == (None, 0, last, at(2026, 5, 2, 22, zone="Europe/Paris"))
    got = due(nightly, last, got.again)
    assert (got.at, got.missed, got.again) == (
        at(2026, 5, 1, 23, zone="Europe/Paris"), 0, at(2026, 5, 2, 23, zone="Europe/Paris"))  # fmt: skip


def test_a_full_run_that_was_missed_makes_the_late_one_full() -> None:
    schedule = Schedule(cron="0 22 * * 1-6", full_cron="0 22 * * 0")
    saturday = at(2026, 10, 31, 22)
    assert due(schedule, saturday, at(2026, 11, 3, 12)).full
    assert not due(schedule, at(2026, 11, 1, 22), at(2026, 11, 3, 12)).full


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["*/20 * * * *", "0 */6 * * *", "0 22 * * 5", "0 0 1 * *"]),
    st.sampled_from(ZONES), windows, st.integers(0, 7200), st.integers(0, 40 * 86400), st.sampled_from(DAYS),
)  # fmt: skip
def test_every_fire_is_run_or_counted(
    text: str, zone_name: str, window: Window | None, jitter: int, down: int, first: date
) -> None:
    schedule = Schedule(cron=text, zone=zone_name, window=window, jitter=jitter, seed="job", catch_up=CatchUp.SKIP)
    last = at(first.year, first.month, first.day)
    now = last + down
    passed = [fire.at for fire in itertools.takewhile(lambda fire: fire.at <= now, fires(schedule, last))]
    got = due(schedule, last, now, grace=300)
    assert got.missed + (got.at is not None) == min(len(passed), 1000)
    assert got.upto == (passed[-1] if passed else last)
    assert (got.at is not None) == bool(passed and now - passed[-1] <= 300)
    assert got.again == next_after(schedule, now)


# -- what is refused ----------------------------------------------------------------------------------

NOW = at(2026, 11, 20)


@pytest.mark.parametrize(
    ("schedule", "error"),
    [
        (Schedule(cron="0 0 30 2 *"), ScheduleNeverFires),
        (Schedule(cron="0 0 31 4,6,9,11 *"), ScheduleNeverFires),
        (Schedule(cron="0 12 * * *", window=NIGHT), ScheduleNeverFires),
        (Schedule(cron="0 23 * * *", full_cron="0 12 * * 0", window=NIGHT), ScheduleNeverFires),
        (Schedule(every=86400, anchor=at(2026, 1, 1, 12), window=NIGHT), ScheduleNeverFires),
        (Schedule(cron="0 0 * * *", start=NOW + 10, end=NOW), ScheduleNeverFires),
        (Schedule(cron="0 0 * * *", end=NOW - 1), ScheduleNeverFires),
        (Schedule(cron="0 0 1 1 *", start=NOW, end=NOW + 86400), ScheduleNeverFires),
        (Schedule(every=600), ScheduleTooOften),
        (Schedule(cron="*/10 * * * *"), ScheduleTooOften),
        (Schedule(cron="0,5 3 * * 0"), ScheduleTooOften),
        (Schedule(cron="55 23 31 12 *", full_cron="0 0 1 1 *"), ScheduleTooOften),
        (Schedule(cron="0 22 * * *", full_cron="5 22 * * 0"), ScheduleTooOften),
        (Schedule(cron="0 0 * * *", zone="Europe/Pari"), ZoneUnknown),
        (Schedule(cron="0 0 * * *", zone="../../etc/passwd"), ZoneUnknown),
        (Schedule(), ScheduleInvalid),
        (Schedule(cron="0 0 * * *", every=3600), ScheduleInvalid),
        (Schedule(every=0), ScheduleInvalid),
        (Schedule(every=3600, anchor=-1), ScheduleInvalid),
        (Schedule(cron="0 0 * * *", jitter=-1), ScheduleInvalid),
        (Schedule(cron="0 0 * * *", jitter=86401), ScheduleInvalid),
        (Schedule(cron="0 0 * * *", start=10**18), ScheduleInvalid),
        (Schedule(cron="0 0 * * *", full_every=0), ScheduleInvalid),
        (Schedule(cron="0 0 * * *", full_every=7, full_cron="0 0 * * 0"), ScheduleInvalid),
        (Schedule(cron="0 0 * * *", window=Window(60, 60)), ScheduleInvalid),
        (Schedule(cron="0 0 * * *", window=Window(60, 1440)), ScheduleInvalid),
    ],
)
def test_what_cannot_be_meant_is_refused(schedule: Schedule, error: type[RakshaError]) -> None:
    with pytest.raises(error) as caught:
        check(schedule, NOW, 900)
    assert "?>" not in str(caught.value) + caught.value.advice()


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(cron="*/15 * * * *", zone="Europe/Paris"),
        Schedule(every=900, window=NIGHT),
        Schedule(cron="0 0 29 2 *"),
        Schedule(cron="0 0 * * *", jitter=86400, start=NOW, end=NOW + 86400, window=NIGHT, full_every=1),
        Schedule(every=7 * 3600, anchor=at(2026, 1, 1, 12), window=NIGHT),
    ],
)
def test_what_can_be_meant_is_taken(schedule: Schedule) -> None:
    check(schedule, NOW, 900)


@pytest.mark.parametrize("text", ["22:00", "22:00-24:00", "9:00-17:00", "22:00-06:00 ", "22.00-06.00", ""])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ScheduleInvalid):
        Window.parse(text)


def test_the_error_says_where_two_fires_are_too_near() -> None:
    with pytest.raises(ScheduleTooOften, match=r"twice within 300 seconds \(2026-11-22 03:00 Europe/Paris\)"):
        check(Schedule(cron="0,5 3 * * 0", zone="Europe/Paris"), NOW, 900)


def test_zones_come_from_the_package_and_near_names_are_told() -> None:
    assert {*ZONES, "Pacific/Apia"} <= names()
    assert zone("Europe/Paris") is zone("Europe/Paris")
    with pytest.raises(ZoneUnknown) as caught:
        zone("europe/paris")
    assert "Europe/Paris" in caught.value.advice()


# -- words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (
            Schedule(cron="30 22 * * 1-5", zone="Europe/Paris", full_cron="0 3 * * 0", jitter=600, window=NIGHT),
            "At 22:30 every Monday to Friday (Europe/Paris), only between 22:00 and 06:00, put off by up to 10 "
            "minutes, full at 03:00 every Sunday; a missed run is made up for once.",
        ),
        (
            Schedule(every=21600, anchor=at(2026, 1, 1), full_every=7, catch_up=CatchUp.SKIP, end=at(2027, 1, 1)),
            "Every 6 hours, counted from 2026-01-01 00:00 UTC, until 2027-01-01 00:00 UTC, full once in 7 runs; missed "
            "runs are skipped.",
        ),
        (Schedule(cron="*/15 * * * *"), "Every 15 minutes (UTC); a missed run is made up for once."),
        (
            Schedule(cron="0 2,14 1,15 * 0,6"),
            "At 02:00 and 14:00 on days 1 and 15 of the month and on every Saturday and Sunday (UTC); a missed run is "
            "made up for once.",
        ),
        (
            Schedule(cron="5 */2 * 1,6-8 *"),
            "Every 2 hours from 00:05 in January and June to August (UTC); a missed run is made up for once.",
        ),
        (
            Schedule(cron="*/20 9-17 */10 * mon", full_every=1, start=at(2026, 1, 1)),
            "Every 20 minutes in the hours 9 to 17 on days 1, 11, 21 and 31 of the month if it is a Monday (UTC), "
            "from 2026-01-01 00:00 UTC on, always full; a missed run is made up for once.",
        ),
        (Schedule(cron="7 * * * *"), "Every hour, at minute 7 (UTC); a missed run is made up for once."),
        (Schedule(cron="@hourly"), "Every hour, on the hour (UTC); a missed run is made up for once."),
        (
            Schedule(cron="1,2 9-17 * * *"),
            "At minutes 1 and 2 of the hours 9 to 17 every day (UTC); a missed run is made up for once.",
        ),
    ],
)
def test_words(schedule: Schedule, sentence: str) -> None:
    assert in_words(schedule) == sentence


@settings(max_examples=50, deadline=None)
@given(expressions, expressions, st.integers(0, 4))
def test_whoever_reads_the_words_knows_the_times(text: str, other: str, changed: int) -> None:
    """One field is another: where the sentence is the same, so are the times."""
    fields = text.split()
    fields[changed] = other.split()[changed]
    second = " ".join(fields)
    said = in_words(Schedule(cron=text))
    assert said[0].isupper()
    assert said.count(".") == 1
    if said == in_words(Schedule(cron=second)):
        cron, like = parse(text), parse(second)
        assert (cron.minutes, cron.hours, cron.months) == (like.minutes, like.hours, like.months)
        days = [datetime(2026, 1, 1) + timedelta(days=number) for number in range(800)]
        daily, daily_too = ("* * " + " ".join(each.split()[2:]) for each in (text, second))
        assert [wall_fires(daily, day) for day in days] == [wall_fires(daily_too, day) for day in days]
