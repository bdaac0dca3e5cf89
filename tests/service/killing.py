"""Kills by a plan: which process, in which phase of the work, for how long. A seed makes the plan, and makes it again.

What falls between two kills (which run is at work, how far it is) is the machine's.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from raksha.errors import RakshaError
from tests.bed.deployment import Deployment
from tests.service.watching import PHASES, Watcher

#: seconds to wait for a phase; then it is killed in whatever phase there is
_WAIT = 15.0
_LOOK = 0.02
#: seconds between a kill and the start that follows
_AWAY = (0.0, 0.3, 1.0, 2.0, 4.0, 8.0)


class Kill(NamedTuple):
    number: int
    phase: str
    victims: tuple[str, ...]
    away: float


def plan(seed: int, count: int, processes: Sequence[str]) -> list[Kill]:
    """Phases and processes come equally often, each in an order of its own. Each ninth time two die together."""
    dice = random.Random(seed)
    phases = _deck(dice, PHASES, count)
    first, second = _deck(dice, processes, count), _deck(dice, processes, count)
    kills = []
    for number, phase in enumerate(phases):
        victims = (first[number], second[number]) if number % 9 == 8 else (first[number],)
        kills.append(Kill(number + 1, phase, tuple(dict.fromkeys(victims)), dice.choice(_AWAY)))
    return kills


def _deck(dice: random.Random, cards: Sequence[str], count: int) -> list[str]:
    """So many cards: all of them shuffled, then all of them again."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += dice.sample(cards, len(cards))
    return drawn[:count]


class Killer:
    """Carries out a plan. `bring_about` makes work in which a phase comes, if it can."""

    def __init__(self, deployment: Deployment, watcher: Watcher, bring_about: Callable[[str], None]) -> None:
        self._deployment = deployment
        self._watcher = watcher
        self._bring_about = bring_about
        #: kills by process, and by each phase that something was in
        self.killed: Counter[str] = Counter()
        self.during: Counter[str] = Counter()
        self.missed = 0

    def carry_out(self, kills: Sequence[Kill]) -> None:
        for kill in kills:
            self._bring_about(kill.phase)
            found = self._wait_for(kill.phase)
            for victim in kill.victims:
                self._deployment.kill(victim)
                self.killed[victim] += 1
                self.during.update(found or {"nothing"})
            self.missed += kill.phase not in found
            what = "" if kill.phase in found else f", not {kill.phase}"
            print(f"{time.strftime('%T')} kill {kill.number}: {', '.join(kill.victims)} for {kill.away} s"
                  f" while {', '.join(sorted(found)) or 'nothing'}{what}", flush=True)  # fmt: skip
            self._pause(kill.away)
            for victim in kill.victims:
                self._deployment.start(victim)

    def visit_the_rest(self, kills: Sequence[Kill]) -> None:
        """Further kills in phases that were never met: some pass within moments."""
        for kill in kills:
            if kill.phase not in self.during:
                self.carry_out([kill])

    def _wait_for(self, phase: str) -> set[str]:
        """Phases at the moment when it came, or when nobody waits any more."""
        until = time.monotonic() + _WAIT
        while True:
            self._deployment.supervise()
            found = self._look()
            if phase in found or time.monotonic() > until:
                return found
            time.sleep(_LOOK)

    def _look(self) -> set[str]:
        try:
            return self._watcher.look()
        except RakshaError:  # a connection to a database that was killed
            return set()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._deployment.supervise()
            if "database" not in self._deployment.down:
                self._look()
            time.sleep(0.1)
