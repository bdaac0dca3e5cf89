"""Addresses of vaults, and the credentials that go with them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raksha.errors import BadVaultUrl, ObjectMissing, VaultAccessDenied
from raksha.vault.address import open_store
from raksha.vault.credentials import TokenCredentials, V1Credentials, V3Credentials, from_environment

V1 = {"ST_AUTH": "http://swift/auth/v1.0", "ST_USER": "test:tester", "ST_KEY": "s3cret"}
V3 = {
    "OS_AUTH_URL": "http://keystone/v3",
    "OS_USERNAME": "ann",
    "OS_PASSWORD": "s3cret",
    "OS_PROJECT_NAME": "lab",
    "OS_USER_DOMAIN_NAME": "Default",
    "OS_PROJECT_DOMAIN_NAME": "Default",
}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*V1, *V3, "OS_STORAGE_URL", "OS_AUTH_TOKEN"]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("form", ["file://{}/v", "file://localhost{}/v", "file://{}/v/"])
def test_a_file_address_is_a_directory(tmp_path: Path, form: str) -> None:
    url = form.format(tmp_path)
    store = open_store(url)
    store.prepare()
    store.put("backupjobs/x", b"x")
    assert (tmp_path / "v" / "backupjobs" / "x").read_bytes() == b"x"
    assert store.url == url


def test_what_a_url_cannot_hold_is_escaped(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/a%20%3Fb%25").prepare()
    assert (tmp_path / "a ?b%" / "backupjobs").is_dir()


def test_opening_makes_nothing(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/v")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/srv/vault",
        "vault",
        "file:relative",
        "file://host/path",
        "file://srv/vault",
        "file://",
        "file:///",
        "file:////",
        "file:///a%00b",
        "file:///a?b",
        "file:///a#b",
        "ftp://x/y",
        "swift://a/b",
        "swift://a b",
        "swift://a%2fb",
        "swift://-a",
        "swift://" + "a" * 65,
        "swift://a?x=y",
        "swift://[",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BadVaultUrl):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "swift://ann:s3cret@lab",
        "swift:///ann:s3cret@lab",
        "swift://lab?key=s3cret",
        "swift://ann:s3cret\u2100@lab",
        "file://ann:s3cret@/x",
        "x://:s3cret@y",
        "x:s3cret@y",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadVaultUrl) as caught:
        open_store(url)
    assert "s3cret" not in f"{caught.value} {caught.value!r} {caught.value.fields} {caught.value.advice()}"


def test_swift_without_credentials_says_what_to_set() -> None:
    with pytest.raises(VaultAccessDenied, match=r"OS_AUTH_URL.*ST_AUTH"):
        open_store("swift://lab")


@pytest.mark.parametrize("url", ["swift://", "swift:///", "swift://lab", "swift://lab/"])
def test_a_swift_address_is_sent_nothing_yet(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in V1.items():
        monkeypatch.setenv(name, value)
    assert open_store(url).url == url


def test_a_patient_store_passes_on_what_is_no_matter_of_patience(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/v", retry_deadline=60)
    store.prepare()
    with pytest.raises(ObjectMissing):
        store.get("backupjobs/x")


# -- credentials ------------------------------------------------------------------------------------


def test_v1() -> None:
    wanted = V1Credentials(auth_url="http://swift/auth/v1.0", user="test:tester", key="s3cret")
    assert from_environment("swift://", V1) == wanted
    assert from_environment("swift://", {**V1, **V3}) == wanted


def test_v3_with_a_password() -> None:
    environ = {**V3, "OS_REGION_NAME": "north", "OS_INTERFACE": "internal", "OS_CACERT": "/ca.pem"}
    found = from_environment("swift://", environ)
    assert found == V3Credentials(
        auth_url="http://keystone/v3",
        username="ann",
        password="s3cret",
        project_name="lab",
        user_domain_name="Default",
        project_domain_name="Default",
        region_name="north",
        endpoint_type="internal",
        cacert="/ca.pem",
    )


def test_v3_is_taken_when_it_is_asked_for() -> None:
    for version in ({"ST_AUTH_VERSION": "3"}, {"OS_IDENTITY_API_VERSION": "3"}):
        assert isinstance(from_environment("swift://", {**V1, **V3, **version}), V3Credentials)


def test_an_application_credential_needs_no_user_and_no_project() -> None:
    environ = {
        "OS_AUTH_URL": "http://keystone",
        "OS_APPLICATION_CREDENTIAL_ID": "id",
        "OS_APPLICATION_CREDENTIAL_SECRET": "s3cret",
        "OS_ENDPOINT_TYPE": "publicURL",
    }
    found = from_environment("swift://", environ)
    assert isinstance(found, V3Credentials)
    assert (found.application_credential_id, found.endpoint_type) == ("id", "public")


def test_a_token_comes_first() -> None:
    environ = {**V1, **V3, "OS_STORAGE_URL": "http://swift/v1/A", "OS_AUTH_TOKEN": "s3cret"}
    assert from_environment("swift://", environ) == TokenCredentials(storage_url="http://swift/v1/A", token="s3cret")


@pytest.mark.parametrize("missing", ["OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME", "OS_AUTH_URL"])
def test_incomplete_credentials_are_refused(missing: str) -> None:
    with pytest.raises(VaultAccessDenied, match=r"OS_PROJECT_NAME|OS_AUTH_URL"):
        from_environment("swift://", {**V3, missing: ""})


TOKEN = {"OS_STORAGE_URL": "http://swift", "OS_AUTH_TOKEN": "s3cret", "OS_SERVICE_TOKEN": "also s3cret"}


@pytest.mark.parametrize("environ", [V1, V3, TOKEN])
def test_a_secret_is_no_part_of_the_repr(environ: dict[str, str]) -> None:
    found = from_environment("swift://", environ)
    assert "s3cret" not in repr(found)
    assert pickle.loads(pickle.dumps(found)) == found
