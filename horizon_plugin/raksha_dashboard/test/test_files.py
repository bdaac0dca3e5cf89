"""Files of the distribution: rules, translations."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import TestCase

import yaml

import raksha_dashboard

PACKAGE = Path(raksha_dashboard.__file__).parent
REPOSITORY = PACKAGE.parents[1]


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
