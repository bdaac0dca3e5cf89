"""Write what is made from the code of the REST API: docs/openapi.json, etc/policy.yaml.sample, and the rules that
Horizon asks for itself.

usage: .venv/bin/python scripts/api_documents.py        (the tests fail while they are not current)
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from raksha.api import policy
from raksha.api.app import OTHER_RULES, create_app, rules
from raksha.api.http_basic import HttpBasic, create_default_users
from raksha.api.services import Services
from raksha.config_api import ApiSettings
from raksha.config_database import DatabaseSettings
from raksha.db.session import connect

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        users = Path(directory) / "users"
        create_default_users(users)
        database = connect(DatabaseSettings(f"sqlite:///{directory}/never-opened"))
        app = create_app(ApiSettings(), Services(database, HttpBasic(users), {}))
        document = app.test_client().get("/openapi.json").data
        database.close()
    (REPOSITORY / "docs/openapi.json").write_bytes(document)
    sample = policy.sample([*OTHER_RULES, *rules()])
    (REPOSITORY / "etc/policy.yaml.sample").write_text(sample)
    (REPOSITORY / "horizon_plugin/raksha_dashboard/conf/raksha_default_policy.yaml").write_text(for_horizon(sample))


def for_horizon(sample: str) -> str:
    """The rules of the sample, as openstack_auth reads them: a list with a mapping for each."""
    lines = ["# The defaults of the API of Raksha, for Horizon's own checks. Made by scripts/api_documents.py."]
    for block in sample.split("\n\n"):
        found = re.search(r'^#"([\w:-]+)": "(.*)"$', block, re.MULTILINE)
        if found:
            about = json.dumps(block.splitlines()[0].removeprefix("# "))
            lines += [f"- name: {found[1]}", f"  description: {about}", "  scope_types: [project]",
                      f"  check_str: {found[2]}"]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
