"""The database's clock, told from round trips."""

from __future__ import annotations

import time

import pytest

from raksha.agent.clock import DatabaseClock


def test_the_middle_of_a_round_trip_and_half_of_it_as_error() -> None:
    clock = DatabaseClock()
    clock.sample(100.0, 100.4, 5_000_000_000)
    read = clock.at(100.2)
    assert read.at == 5_000_000_000 and read.error == pytest.approx(0.2, abs=0.001)
    assert clock.at(101.2).at == 5_001_000_000


def test_the_quickest_round_trip_counts_until_it_is_old() -> None:
    clock = DatabaseClock()
    clock.sample(100.0, 100.01, 1_000_000_000)
    clock.sample(101.0, 103.0, 9_000_000_000)
    assert clock.at(100.005).at == 1_000_000_000 and clock.at(103.0).error < 0.01
    # a day later two seconds are better than what the crystal did since
    clock.sample(100_000.0, 100_002.0, 90_000_000_000)
    assert clock.at(100_001.0).at == 90_000_000_000


def test_whatever_the_delay_the_truth_is_within_the_error() -> None:
    for there, back in ((0.0, 0.3), (0.3, 0.0), (0.15, 0.15), (0.01, 0.001)):
        clock = DatabaseClock()
        clock.sample(50.0, 50.0 + there + back, round((1000 + 50 + there) * 1e6))
        read = clock.at(60.0)
        assert abs(read.at / 1e6 - 1060.0) <= read.error + 1e-9, (there, back)


def test_now_goes_on_with_this_host() -> None:
    clock = DatabaseClock()
    at = time.monotonic()
    clock.sample(at, at, 0)
    first = clock.now().at
    time.sleep(0.02)
    assert 20_000 <= clock.now().at - first < 2_000_000
