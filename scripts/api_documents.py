"""Write what is made from the code of the REST API: docs/openapi.json and etc/policy.yaml.sample.

usage: .venv/bin/python scripts/api_documents.py        (the tests fail while they are not current)
"""

from __future__ import annotations

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
    (REPOSITORY / "etc/policy.yaml.sample").write_text(policy.sample([*OTHER_RULES, *rules()]))


if __name__ == "__main__":
    main()
