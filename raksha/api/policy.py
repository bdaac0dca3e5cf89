"""What an identity may do: one rule for every route, in oslo.policy's language, operators change them in a file.

Roles are OpenStack's: `reader` looks, `member` defines and runs, `admin` operates the service. A rule is of the
caller's own project unless it says otherwise. What belongs to another project is answered as if there were nothing:
404, never 403; 403 says that the caller's own roles do not suffice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

import yaml
from msgspec import Struct
from oslo_config import cfg
from oslo_policy import opts, policy

from raksha.api.auth import Identity
from raksha.errors import NotAllowed, NothingHere, SettingsWrong


class Allow(StrEnum):
    """Whom a rule lets in, unless the operator says otherwise."""

    #: readers of the project
    READER = "rule:project_reader"
    #: members of the project
    MEMBER = "rule:project_member"
    #: readers of the project, and admins from anywhere
    READER_OR_ADMIN = "rule:project_reader or rule:admin"
    #: members of the project, and admins from anywhere
    MEMBER_OR_ADMIN = "rule:project_member or rule:admin"
    #: admins, from anywhere
    ADMIN = "rule:admin"


class Rule(Struct, frozen=True):
    """Of one route."""

    #: `noun:verb`
    name: str
    allow: Allow
    #: what it lets do
    does: str
    #: of HTTP
    method: str
    path: str


_BASE = [
    policy.RuleDefault("admin", "role:admin", "Operators of the service."),
    policy.RuleDefault("project_member", "role:member and project_id:%(project_id)s", "Who works in the project."),
    policy.RuleDefault("project_reader", "role:reader and project_id:%(project_id)s", "Who may look at the project."),
]


class Policy:
    """The rules in force. The operator's file is read again when it changes."""

    def __init__(self, rules: Iterable[Rule], file: Path | None = None) -> None:
        """Raises `SettingsWrong` for a file that cannot be read, has a rule that is unknown, or one that is none."""
        conf = cfg.ConfigOpts()
        opts.set_defaults(conf)
        conf([], project="raksha", default_config_files=[], default_config_dirs=[])
        # it reads a file or nothing works; no file is an empty one
        conf.set_override("policy_file", str(file or os.devnull), group="oslo_policy")
        conf.set_override("policy_dirs", [], group="oslo_policy")
        self._enforcer = policy.Enforcer(conf)
        self._enforcer.register_defaults([*_BASE, *(_documented(rule) for rule in rules)])
        if file is not None:
            self._check(file)
        self._enforcer.load_rules()

    def _check(self, file: Path) -> None:
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsWrong(detail=f"the policy file {file} cannot be read: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(check, str) for check in found.values()):
            raise SettingsWrong(detail=f"the policy file {file} is no mapping of rules to texts")
        unknown = [name for name in found if name not in self._enforcer.registered_rules]
        if unknown:
            raise SettingsWrong(detail=f"the policy file {file} has rules that do not exist: {', '.join(unknown)}")
        for name, check in found.items():
            # oslo.policy takes what it cannot parse for "never"
            if str(policy.RuleDefault(name, check).check) == "!" and check.strip() != "!":
                raise SettingsWrong(detail=f"the policy file {file}: {name} is no rule: {check!r}")

    def require(self, rule: str, identity: Identity, tenant_id: str | None) -> None:
        """Raises `NothingHere` for what belongs to another project, `NotAllowed` for what the roles do not allow."""
        if self.allows(rule, identity, tenant_id):
            return
        if tenant_id is not None and tenant_id != identity.project_id:
            raise NothingHere
        raise NotAllowed(rule=rule)

    def allows(self, rule: str, identity: Identity, tenant_id: str | None) -> bool:
        """`tenant_id`: the project that what is asked for belongs to; None: it is the service's."""
        target = {} if tenant_id is None else {"project_id": tenant_id}
        creds = {"user_id": identity.user_id, "project_id": identity.project_id, "roles": sorted(identity.roles)}
        return bool(self._enforcer.authorize(rule, target, creds))


def sample(rules: Sequence[Rule]) -> str:
    """The sample file: every rule with its default, commented out."""
    parts = [
        "# Who may do what. Copy to /etc/raksha/policy.yaml, name it in [api] policy_file, and uncomment what is to",
        "# differ. Changes are taken up while the service runs. Made by scripts/api_documents.py.",
    ]
    parts += [f'\n# {base.description}\n#"{base.name}": "{base.check_str}"' for base in _BASE]
    for rule in sorted(rules, key=lambda rule: rule.name):
        parts += ["", f"# {rule.does}", f"# {rule.method} {rule.path}", f'#"{rule.name}": "{rule.allow}"']
    return "\n".join(parts) + "\n"


def _documented(rule: Rule) -> policy.DocumentedRuleDefault:
    return policy.DocumentedRuleDefault(
        name=rule.name,
        check_str=rule.allow.value,
        description=rule.does,
        operations=[{"path": rule.path, "method": rule.method}],
        scope_types=["project"],
    )
