"""docs/notifications.md is what the code sends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields

from raksha.config_notifications import NotificationSettings, load
from raksha.db import telling
from raksha.errors import SettingsWrong
from raksha.notifications import RECORDS, Event

DOCUMENT = (Path(__file__).parents[2] / "docs/notifications.md").read_text()
#: by the middle of the event's name
EXAMPLES: dict[str, str] = dict(re.findall(r"`raksha\.(\w+)\.\*`:\n\n```json\n(.*?)```", DOCUMENT, re.S))


@pytest.mark.parametrize("noun", RECORDS)
def test_each_example_is_a_payload_with_all_its_fields(noun: str) -> None:
    kind, shown = RECORDS[noun], json.loads(EXAMPLES[noun])
    assert shown["version"] == "1.1"
    decoded = msgspec.convert(shown, kind)
    # in both directions: nothing too much, nothing too little, times as they are sent; all the way down
    assert json.dumps(msgspec.to_builtins(decoded)) == json.dumps(shown)
    assert list(shown) == [field.name for field in fields(kind)]


def test_the_examples_are_of_all_records_and_no_others() -> None:
    assert EXAMPLES.keys() == RECORDS.keys()


def test_every_event_is_listed_with_its_queue() -> None:
    listed = dict(re.findall(r"^\| `(raksha\.[\w.]+)` \| (\w+) \|", DOCUMENT, re.M))
    assert listed == {event.value: event.priority for event in Event}
    assert {event.split(".")[1] for event in Event} == RECORDS.keys()


def test_every_event_comes_from_somewhere() -> None:
    told = set(telling.MOVES.values())
    told |= {Event.JOB_CREATE, Event.JOB_TAKE_OVER, Event.JOB_DELETE, Event.RUN_DELETE, Event.RUN_HEAL}
    told |= {Event.RUN_PROVEN, Event.RUN_UNPROVEN}
    assert told == set(Event)


def test_no_field_of_a_record_is_for_something_secret() -> None:
    def names(kind: Any) -> set[str]:
        inner = [each for field in fields(kind) for each in re.findall(r"\w+", str(field.type))]
        return {field.name for field in fields(kind)} | {name for name in inner if "trust" in name.lower()}

    every = set().union(*(names(kind) for kind in RECORDS.values()))
    assert not [name for name in every if re.search("trust|token|secret|password|credential|hints|made|result", name)]


def test_settings_come_from_the_file_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "raksha.conf"
    path.write_text("")
    assert load(path) == NotificationSettings()
    path.write_text("[notifications]\nenabled = true\ntopics = notifications, billing\nkeep = 60\n")
    assert load(path) == NotificationSettings(enabled=True, topics=("notifications", "billing"), keep=60)
    for wrong in ("topics = a b", "keep = 1", "enabled = true\ntopics ="):
        path.write_text(f"[notifications]\n{wrong}\n")
        with pytest.raises(SettingsWrong):
            load(path)
