"""Every route × every role × own and foreign project; the operator's file; no way in without a rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raksha.api import policy
from raksha.api.app import NOUNS, OTHER_RULES, rules
from raksha.api.auth import Identity
from raksha.api.nouns import Noun, operation_of, shown_path
from raksha.api.policy import Allow, Policy, Rule
from raksha.errors import NotAllowed, NothingHere, SettingsWrong
from tests.unit.api.conftest import USERS, Api, error

REPOSITORY = Path(__file__).parents[3]

#: what everybody may see, without a name
PUBLIC = {"/", "/v1/", "/healthcheck", "/metrics", "/openapi.json", "/docs", "/docs/<name>"}

#: role of p1 → in p1, in p2: 200 let in, 403 not allowed, 404 not there
EXPECTED = {
    Allow.READER: {"nobody": (403, 404), "reader": (200, 404), "member": (200, 404), "admin": (200, 404)},
    Allow.MEMBER: {"nobody": (403, 404), "reader": (403, 404), "member": (200, 404), "admin": (200, 404)},
    Allow.READER_OR_ADMIN: {"nobody": (403, 404), "reader": (200, 404), "member": (200, 404), "admin": (200, 200)},
    Allow.MEMBER_OR_ADMIN: {"nobody": (403, 404), "reader": (403, 404), "member": (200, 404), "admin": (200, 200)},
    Allow.ADMIN: {"nobody": (403, 404), "reader": (403, 404), "member": (403, 404), "admin": (200, 200)},
}


def tried() -> Noun:
    """A route of each kind."""
    noun = Noun("tried", "/v1/<project:tenant_id>/tried", "One of each.")
    for allow in Allow:

        def view(tenant_id: str) -> dict[str, bool]:
            return {"in": True}

        view.__name__ = allow.name.lower()
        path = f"/{allow.name.lower()}"
        noun.operation("GET", path, rule=view.__name__, allow=allow, does="Get in.")(view)
    return noun


@pytest.mark.parametrize("allow", Allow)
@pytest.mark.parametrize("user", sorted(set(USERS) - {"stranger"}))
def test_who_gets_in_where(make_api: Callable[..., Api], allow: Allow, user: str) -> None:
    api = make_api(tried())
    for project, status in zip(("p1", "p2"), EXPECTED[allow][user], strict=True):
        answer = api("GET", f"/v1/{project}/tried/{allow.name.lower()}", user)
        assert answer.status_code == status, (project, answer.get_data(as_text=True))
    error(api("GET", f"/v1/p1/tried/{allow.name.lower()}", None), 401, "not_authenticated")


def routes(api: Api) -> Iterator[tuple[str, str, Rule]]:
    """Method, a possible address in project {}, rule: of everything that has one."""
    for route in api.app.url_map.iter_rules():
        operation = operation_of(api.app, route.endpoint)
        assert operation is not None
        if operation.rule is None:
            assert route.rule in PUBLIC, f"{route.rule} is open to everybody"
            continue
        values = {name: "5f3c1e2a-8d4b-4c6f-9a7e-0b1d2c3e4f50" for name in route.arguments if name != "tenant_id"}
        address = shown_path(route.rule).replace("{tenant_id}", "{{tenant}}").format(**values)
        for method in (route.methods or set()) - {"HEAD"}:
            assert method == operation.rule.method
            yield method, address.replace("{tenant}", "{}"), operation.rule


@pytest.mark.parametrize("user", [*sorted(USERS), None], ids=str)
def test_every_route_that_there_is_keeps_out_whom_its_rule_does_not_let_in(api: Api, user: str | None) -> None:
    walked = 0
    for method, address, rule in routes(api):
        for position, project in enumerate(("p1", "p2")):
            answer = api(method, address.format(project), user)
            what = f"{user}: {method} {address.format(project)}: {answer.get_data(as_text=True)}"
            if user is None:
                assert answer.status_code == 401, what
            elif user == "stranger" and project == "p1":
                assert answer.status_code == 404, what
            else:
                # a stranger is a member at home
                role, at = ("member", 0) if user == "stranger" else (user, position)
                wanted = EXPECTED[rule.allow][role][at]
                if wanted == 200:
                    # let in; what it then says of an empty or unknown thing is its own affair
                    assert answer.status_code not in (401, 403) and answer.status_code < 500, what
                else:
                    assert answer.status_code == wanted, what
            walked += 1
    assert walked == 2 * sum(len(noun.rules) * (1 + len(noun.aliases)) for noun in NOUNS)


def test_what_is_foreign_looks_like_what_does_not_exist(api: Api) -> None:
    def told(path: str) -> dict[str, object]:
        entry = api("GET", path).json["errors"][0]
        return {name: entry[name] for name in entry if name != "request_id"}

    assert told("/v1/p2/limits") == told("/v1/no-such-project/limits") == told("/v1/p1/no-such-noun")


@pytest.mark.parametrize("project", ["..", "p1%00", "p1%2f..", "p1%0a", "%70%31%20", "p" * 65, "", "*", "p1;x"])
def test_what_is_no_project_is_not_there(api: Api, project: str) -> None:
    error(api("GET", f"/v1/{project}/limits", "admin"), 404, "not_found")


def test_policy_comes_before_the_request_is_looked_at(api: Api) -> None:
    error(api("POST", "/v1/p2/schedule-preview", data=b"{"), 404, "not_found")
    error(api("POST", "/v1/p1/schedule-preview", "nobody", data=b"{"), 403, "not_allowed")
    error(api("POST", "/v1/p1/schedule-preview", None, data=b"{"), 401, "not_authenticated")


def test_a_route_without_a_rule_is_no_application(api: Api, make_api: Callable[..., Api]) -> None:
    noun = Noun("open", "/v1/<project:tenant_id>/open", "Somebody forgot.")
    noun.route("/door")(lambda tenant_id: {})
    with pytest.raises(RuntimeError, match="/v1/<project:tenant_id>/open/door"):
        make_api(noun)


def test_names_of_rules_are_unique_and_well_formed() -> None:
    names = [rule.name for rule in rules()]
    assert len(set(names)) == len(names)
    for noun in NOUNS:
        assert all(rule.name.startswith(f"{noun.noun}:") for rule in noun.rules)


def test_the_sample_is_current() -> None:
    sample = (REPOSITORY / "etc/policy.yaml.sample").read_text()
    assert sample == policy.sample([*OTHER_RULES, *rules()]), "run scripts/api_documents.py"


def test_the_sample_says_the_defaults(tmp_path: Path) -> None:
    text = (REPOSITORY / "etc/policy.yaml.sample").read_text()
    file = tmp_path / "policy.yaml"
    file.write_text("\n".join(line[1:] for line in text.splitlines() if line.startswith('#"')))
    made = Policy([*OTHER_RULES, *rules()], file)
    identity = Identity("u", "p1", frozenset({"reader"}))
    made.require("limits:show", identity, "p1")
    with pytest.raises(NothingHere):
        made.require("limits:show", identity, "p2")


def test_the_operators_file_counts_and_is_read_again(make_api: Callable[..., Api], tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text('"limits:show": "role:auditor and project_id:%(project_id)s"\n')
    api = make_api(policy_file=file)
    assert api("GET", "/v1/p1/limits", "nobody").status_code == 200
    error(api("GET", "/v1/p1/limits", "member"), 403, "not_allowed")
    time.sleep(0.01)
    file.write_text('"limits:show": "!"\n')
    error(api("GET", "/v1/p1/limits", "nobody"), 403, "not_allowed")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"limits:shwo": "role:reader"\n', "limits:shwo"),
        ('"limits:show": "role:reader and"\n', "limits:show"),
        ("- limits\n", "no mapping"),
        ('"limits:show": 5\n', "no mapping"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_policy_file_is_told_at_the_start(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(SettingsWrong, match=says):
        Policy(rules(), file)


def test_a_policy_file_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsWrong, match="cannot be read"):
        Policy(rules(), tmp_path / "none.yaml")


def test_a_project_of_the_name_of_nothing_is_no_way_around() -> None:
    made = Policy(rules())
    with pytest.raises(NothingHere):
        made.require("limits:show", Identity("u", "p1", frozenset({"reader"})), "None")
    with pytest.raises(NotAllowed):
        made.require("limits:show", Identity("u", "p1", frozenset({"reader"})), None)
