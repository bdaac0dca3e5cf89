"""Schemas of all services, Keystone, and who is who in it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.openstack.cloud.daemons import run, uwsgi, wait_for_port
from tests.openstack.cloud.layout import (
    CINDER,
    ETC,
    GLANCE,
    IP,
    KEYSTONE,
    KEYSTONE_URL,
    NEUTRON,
    NOVA,
    PASSWORD,
    PLACEMENT,
    REGION,
    STATE,
    SWIFT,
    VENV,
    database,
)
from tests.openstack.cloud.rest import Api, Cloud

ROLES = ("admin", "member", "reader", "service", "ResellerAdmin", "swiftoperator")
SERVICE_USERS = ("glance", "placement", "nova", "cinder", "neutron", "swift", "raksha")
#: tenants, each with a user of the same name
TENANTS = ("demo", "alt")
ENDPOINTS = (
    ("image", "glance", f"http://{IP}:{GLANCE}"),
    ("placement", "placement", f"http://{IP}:{PLACEMENT}"),
    ("compute", "nova", f"http://{IP}:{NOVA}/v2.1"),
    ("block-storage", "cinder", f"http://{IP}:{CINDER}/v3"),
    ("volumev3", "cinderv3", f"http://{IP}:{CINDER}/v3/%(project_id)s"),
    ("network", "neutron", f"http://{IP}:{NEUTRON}"),
    ("object-store", "swift", f"http://{IP}:{SWIFT}/v1/AUTH_%(project_id)s"),
)
_KEYSTONE_CONF = ETC / "keystone/keystone.conf"
_DONE = STATE / "schemas-made"


def up() -> None:
    fresh = not _DONE.exists()
    if fresh:
        _prepare_keystone()
    uwsgi(
        "keystone", KEYSTONE, "keystone.wsgi.api:application",
        OS_KEYSTONE_CONFIG_DIR=str(ETC / "keystone"), OS_KEYSTONE_CONFIG_FILES="keystone.conf",
    )  # fmt: skip
    if fresh:
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(make) for make in _SCHEMAS]:
                done.result()
    wait_for_port("keystone", KEYSTONE)
    if fresh:
        _people()
        _DONE.touch()


def _prepare_keystone() -> None:
    manage = [VENV / "bin/keystone-manage", "--config-file", _KEYSTONE_CONF]
    run(*manage, "db_sync", log="db-keystone")
    for keys in ("fernet-keys", "credential-keys"):
        (ETC / "keystone" / keys).mkdir(mode=0o700, exist_ok=True)
    for setup in ("fernet_setup", "credential_setup"):
        run(*manage, setup, "--keystone-user", "root", "--keystone-group", "root")
    urls = [word for kind in ("admin", "internal", "public") for word in (f"--bootstrap-{kind}-url", KEYSTONE_URL)]
    run(*manage, "bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-region-id", REGION, *urls)


def _glance() -> None:
    run(VENV / "bin/glance-manage", "--config-file", ETC / "glance/glance-api.conf", "db_sync", log="db-glance")


def _placement() -> None:
    run(VENV / "bin/placement-manage", "--config-file", ETC / "placement/placement.conf", "db", "sync",
        log="db-placement")  # fmt: skip


def _cinder() -> None:
    run(VENV / "bin/cinder-manage", "--config-file", ETC / "cinder/cinder.conf", "db", "sync", log="db-cinder")


def _neutron() -> None:
    command = [VENV / "bin/neutron-db-manage", "--config-file", ETC / "neutron/neutron.conf", "upgrade", "heads"]
    run(*command, timeout=300, log="db-neutron")


def _nova() -> None:
    manage = [VENV / "bin/nova-manage", "--config-file", ETC / "nova/nova.conf"]
    run(*manage, "api_db", "sync", timeout=300, log="db-nova-api")
    run(*manage, "cell_v2", "map_cell0", "--database_connection", database("nova_cell0"))
    run(*manage, "cell_v2", "create_cell", "--name=cell1")
    run(*manage, "db", "sync", timeout=300, log="db-nova")


_SCHEMAS: tuple[Callable[[], None], ...] = (_nova, _neutron, _cinder, _glance, _placement)


def _people() -> None:
    keystone = Cloud("admin").keystone
    roles = {name: _ensure(keystone, "role", name) for name in ROLES}
    projects = {
        name: _ensure(keystone, "project", name, domain_id="default") for name in ("service", "admin", *TENANTS)
    }

    def person(name: str, project: str, *granted: str) -> None:
        user = _ensure(keystone, "user", name, domain_id="default", password=PASSWORD)
        for role in granted:
            keystone.put(f"/projects/{projects[project]}/users/{user}/roles/{roles[role]}")

    for name in SERVICE_USERS:
        person(name, "service", "admin", "service")
    for name in TENANTS:
        person(name, name, "member", "reader")
        person("admin", name, "admin")
    for kind, name, url in ENDPOINTS:
        service = keystone.post("/services", {"service": {"type": kind, "name": name}})["service"]["id"]
        for interface in ("public", "internal", "admin"):
            endpoint = {"service_id": service, "interface": interface, "url": url, "region_id": REGION}
            keystone.post("/endpoints", {"endpoint": endpoint})


def _ensure(keystone: Api, kind: str, name: str, **more: object) -> str:
    found = keystone.get(f"/{kind}s?name={name}")[f"{kind}s"]
    if not found:
        found = [keystone.post(f"/{kind}s", {kind: {"name": name, **more}})[kind]]
    return str(found[0]["id"])
