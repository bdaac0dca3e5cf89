"""Files of the distribution: rules, translations."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from unittest import TestCase

import yaml
from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

import raksha_dashboard
from raksha_dashboard import words

PACKAGE = Path(raksha_dashboard.__file__).parent
REPOSITORY = PACKAGE.parents[1]


#: what a message is filled with
HOLE = re.compile(r"%(?:\(\w+\))?[sd%]|\{\{ \w+ \}\}")


def catalog(name: str) -> Catalog:
    with (PACKAGE / "locale" / name).open("rb") as file:
        return read_po(file, domain="django")


def text(found: str | Sequence[str]) -> str:
    return found if isinstance(found, str) else "\0".join(found)


def holes(said: str) -> list[str]:
    return sorted(HOLE.findall(said))


class Translations(TestCase):
    def test_every_message_is_in_every_language(self) -> None:
        wanted = {message.id for message in catalog("django.pot") if message.id}
        self.assertGreater(len(wanted), 300)
        languages = sorted((PACKAGE / "locale").glob("*/LC_MESSAGES/django.po"))
        self.assertEqual(["de"], [file.parts[-3] for file in languages])
        for file in languages:
            found = {message.id: message for message in catalog(str(file)) if message.id and not message.fuzzy}
            self.assertEqual(set(), wanted ^ found.keys())
            for message in found.values():
                self.fits(message)
            with file.with_suffix(".mo").open("rb") as compiled:
                shown = {text(message.id): text(message.string) for message in read_mo(compiled) if message.id}
            self.assertEqual({text(id): text(message.string) for id, message in found.items()}, shown)

    def fits(self, message: Message) -> None:
        """Nothing is missing, and nothing is asked for that is not given. A form for one need not have the number."""
        ids = message.id if isinstance(message.id, tuple) else (message.id,)
        texts = message.string if isinstance(message.string, tuple) else (message.string,)
        self.assertTrue(all(texts), message.id)
        self.assertEqual(len(ids), len(texts), message.id)
        for id, said in zip(ids, texts, strict=True):
            self.assertEqual(holes(id), holes(said), message.id)


class Words(TestCase):
    def test_every_state_of_the_api_has_a_word(self) -> None:
        document = json.loads((REPOSITORY / "docs/openapi.json").read_text())["components"]["schemas"]
        named = {
            state
            for schema in document.values()
            for state in schema.get("properties", {}).get("state", {}).get("enum", ())
        }
        self.assertIn("drained", named)
        self.assertLessEqual(named, words.STATES.keys())


class Files(TestCase):
    def test_rules_are_those_of_the_api(self) -> None:
        sample = (REPOSITORY / "etc/policy.yaml.sample").read_text()
        rules = dict(re.findall(r'^#"([\w:-]+)": "(.*)"$', sample, re.MULTILINE))
        ours = yaml.safe_load((PACKAGE / "conf/raksha_default_policy.yaml").read_text())
        self.assertEqual(rules, {rule["name"]: rule["check_str"] for rule in ours})

    def test_every_rule_that_an_action_names_exists(self) -> None:
        ours = {rule["name"] for rule in yaml.safe_load((PACKAGE / "conf/raksha_default_policy.yaml").read_text())}
        named = set()
        for file in PACKAGE.rglob("*.py"):
            if "test" not in file.parts:
                named |= set(re.findall(r'\((?:SERVICE_TYPE|"data-protection"), "([\w:-]+)"\)', file.read_text()))
        self.assertTrue(named)
        self.assertLessEqual(named, ours)
