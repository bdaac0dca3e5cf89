"""Schedules as the form has them, and as the API has them; and in words.

The form knows what most people want (hours, days, weekdays, weeks); everything else is a cron expression. What a form
does not know of a schedule (a window, jitter, an end) stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from raksha.client.records import Retention, Schedule

HAND, HOURS, DAILY, WEEKDAYS, WEEKLY, CRON = "hand", "hours", "daily", "weekdays", "weekly", "cron"
OFTEN = (
    (DAILY, gettext_lazy("Every day")), (WEEKDAYS, gettext_lazy("From Monday to Friday")),
    (WEEKLY, gettext_lazy("Once a week")), (HOURS, gettext_lazy("Every few hours")),
    (CRON, gettext_lazy("By a cron expression")), (HAND, gettext_lazy("By hand only")),
)  # fmt: skip
DAYS = (
    ("1", gettext_lazy("Monday")), ("2", gettext_lazy("Tuesday")), ("3", gettext_lazy("Wednesday")),
    ("4", gettext_lazy("Thursday")), ("5", gettext_lazy("Friday")), ("6", gettext_lazy("Saturday")),
    ("0", gettext_lazy("Sunday")),
)  # fmt: skip
NEVER, RUNS = "never", "runs"
FULL = (
    (NEVER, gettext_lazy("Only when there is no other way (incremental for ever)")),
    (RUNS, gettext_lazy("Once in so many runs")), (CRON, gettext_lazy("At times of its own, by a cron expression")),
)  # fmt: skip
RULES = ("keep_last", "hourly", "daily", "weekly", "monthly", "yearly")
_FORM = ("cron", "every", "zone", "full_cron", "full_every")
_CRON = re.compile(r"(\d{1,2}) (\d{1,2}) \* \* (\*|1-5|[0-7])")


def to_form(schedule: Schedule | None) -> dict[str, Any]:
    """What the fields of the form begin with."""
    if schedule is None:
        return {"often": HAND}
    values: dict[str, Any] = {"zone": schedule.zone}
    found = _CRON.fullmatch(schedule.cron or "")
    if schedule.every and schedule.every % 3600 == 0:
        values |= {"often": HOURS, "hours": schedule.every // 3600}
    elif found:
        minute, hour, day = found.groups()
        values |= {"at": f"{int(hour):02}:{int(minute):02}"}
        values |= {"often": {"*": DAILY, "1-5": WEEKDAYS}.get(day, WEEKLY)}
        if values["often"] == WEEKLY:
            values["weekday"] = str(int(day) % 7)
    else:
        values |= {"often": CRON, "cron": schedule.cron or ""}
    if schedule.full_cron:
        values |= {"full": CRON, "full_cron": schedule.full_cron}
    elif schedule.full_every:
        values |= {"full": RUNS, "full_every": schedule.full_every}
    else:
        values["full"] = NEVER
    return values


def from_form(values: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The body for the API. `before`: of a schedule that is changed."""
    often = values.get("often") or HAND
    if often == HAND:
        return None
    body = {name: value for name, value in (before or {}).items() if name not in _FORM}
    body["zone"] = values.get("zone") or "UTC"
    if often == HOURS:
        body["every"] = int(values.get("hours") or 1) * 3600
    elif often == CRON:
        body["cron"] = values.get("cron") or ""
    else:
        body.pop("anchor", None)
        at = values.get("at")
        hour, minute = (at.hour, at.minute) if hasattr(at, "hour") else map(int, str(at or "0:00").split(":")[:2])
        day = {DAILY: "*", WEEKDAYS: "1-5"}.get(often) or values.get("weekday") or "0"
        body["cron"] = f"{minute} {hour} * * {day}"
    full = values.get("full")
    if full == RUNS:
        body["full_every"] = int(values.get("full_every") or 7)
    elif full == CRON:
        body["full_cron"] = values.get("full_cron") or ""
    return body


def words(schedule: Schedule | None) -> str:
    """Short: for a table."""
    form = to_form(schedule)
    often, at, zone = form["often"], form.get("at"), form.get("zone")
    if schedule is None:
        return _("By hand only")
    if often == HOURS:
        return ngettext("Every hour", "Every %(count)d hours", form["hours"]) % {"count": form["hours"]}
    if often == DAILY:
        return _("Every day at %(at)s (%(zone)s)") % {"at": at, "zone": zone}
    if often == WEEKDAYS:
        return _("Monday to Friday at %(at)s (%(zone)s)") % {"at": at, "zone": zone}
    if often == WEEKLY:
        day = dict(DAYS)[form["weekday"]]
        return _("Every %(day)s at %(at)s (%(zone)s)") % {"day": day, "at": at, "zone": zone}
    if schedule.every:
        return _("Every %(count)d seconds") % {"count": schedule.every}
    return _("Cron %(cron)s (%(zone)s)") % {"cron": schedule.cron, "zone": zone}


def full_words(schedule: Schedule | None) -> str:
    if schedule is None or not (schedule.full_cron or schedule.full_every):
        return _("Only when there is no other way")
    if schedule.full_cron:
        return _("Cron %(cron)s (%(zone)s)") % {"cron": schedule.full_cron, "zone": schedule.zone}
    return ngettext("Every run", "Once in %(count)d runs", schedule.full_every or 1) % {"count": schedule.full_every}


def retention_from_form(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """None: everything is kept."""
    kept = {name: int(values[name]) for name in RULES if str(values.get(name) or "0").isdigit() and values.get(name)}
    kept = {name: count for name, count in kept.items() if count}
    if values.get("keep") == "all" or not kept:
        return None
    return {**kept, "zone": values.get("zone") or "UTC"}


def retention_to_form(retention: Retention | None) -> dict[str, Any]:
    if retention is None:
        return {"keep": "all"}
    return {"keep": "some", **{name: getattr(retention, name) or None for name in RULES}}


def retention_words(retention: Any) -> str:
    """Of a record or a body."""
    if retention is None:
        return _("Everything is kept")
    if not isinstance(retention, Mapping):
        retention = {name: getattr(retention, name) for name in RULES}
    names = {
        "keep_last": ngettext("the newest one", "the newest %(n)d", retention.get("keep_last") or 1),
        "hourly": ngettext("%(n)d hourly", "%(n)d hourly", retention.get("hourly") or 1),
        "daily": ngettext("%(n)d daily", "%(n)d daily", retention.get("daily") or 1),
        "weekly": ngettext("%(n)d weekly", "%(n)d weekly", retention.get("weekly") or 1),
        "monthly": ngettext("%(n)d monthly", "%(n)d monthly", retention.get("monthly") or 1),
        "yearly": ngettext("%(n)d yearly", "%(n)d yearly", retention.get("yearly") or 1),
    }
    said = [names[rule] % {"n": retention[rule]} for rule in RULES if retention.get(rule)]
    return ", ".join(said) if said else _("Only the newest one is kept")
