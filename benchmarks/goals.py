"""A promise, as a figure that is at least or at most something; each section has a list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Medians = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Goal:
    text: str
    value: Callable[[Medians], float]
    #: the value must be at least (or, negative, at most) this; None: measured without a promise
    limit: float | None = None
    unit: str = ""

    def row(self, medians: Medians) -> tuple[str, str, str, str]:
        """What, goal, measured, met; a contender that failed leaves a gap."""
        goal = "" if self.limit is None else f"{'≥' if self.limit > 0 else '≤'} {abs(self.limit):g}{self.unit}"
        try:
            value = self.value(medians)
        except KeyError:
            return self.text, goal, "not measured", ""
        return self.text, goal, f"{value:.2f}{self.unit}", self._met(value)

    def _met(self, value: float) -> str:
        if self.limit is None:
            return ""
        # as it is shown: 1.004 is 1
        shown = round(value, 2)
        return "yes" if (shown >= self.limit if self.limit > 0 else shown <= -self.limit) else "no"


def over(upper: str, lower: str) -> Callable[[Medians], float]:
    return lambda medians: medians[upper] / medians[lower]
