"""Swift behind Keystone: one replica in a plain directory."""

from __future__ import annotations

from pathlib import Path

from tests.openstack.cloud.configuration import authtoken, ini
from tests.openstack.cloud.daemons import run, start, wait_for_port
from tests.openstack.cloud.layout import (
    DATA,
    ETC,
    IP,
    MEMCACHED,
    SWIFT,
    SWIFT_ACCOUNT,
    SWIFT_CONTAINER,
    SWIFT_OBJECT,
    VENV,
)

_FOLDER = ETC / "swift"
_STORAGE = {"account": SWIFT_ACCOUNT, "container": SWIFT_CONTAINER, "object": SWIFT_OBJECT}
_PIPELINE = (
    "catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk tempurl authtoken keystoneauth copy "
    "container-quotas account-quotas slo dlo versioned_writes symlink proxy-logging proxy-server"
)
_PLAIN_FILTERS = (
    "catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "tempurl", "copy", "dlo", "symlink",
)  # fmt: skip
_RINGS = Path(__file__).resolve().parents[2] / "bed/swift_conf/rings.py"


def up() -> None:
    (DATA / "swift/d0").mkdir(parents=True, exist_ok=True)
    _FOLDER.mkdir(exist_ok=True)
    _write()
    if not (_FOLDER / "object.ring.gz").exists():
        run(VENV / "bin/python", _RINGS, _FOLDER, *(f"{kind}:{port}" for kind, port in _STORAGE.items()))
    for kind in _STORAGE:
        start(f"swift-{kind}", [VENV / f"bin/swift-{kind}-server", _FOLDER / f"{kind}.conf"])
    start("swift-proxy", [VENV / "bin/swift-proxy-server", _FOLDER / "proxy.conf"])


def wait() -> None:
    for kind, port in _STORAGE.items():
        wait_for_port(f"swift-{kind}", port)
    wait_for_port("swift-proxy", SWIFT)


def _write() -> None:
    suffix = {"swift_hash_path_suffix": "raksha", "swift_hash_path_prefix": "raksha"}
    ini(_FOLDER / "swift.conf", {"swift-hash": suffix, "swift-constraints": {"max_file_size": 5 * 2**30 + 2}})
    common = {"bind_ip": IP, "user": "root", "swift_dir": _FOLDER, "log_address": "/dev/null"}
    for kind, port in _STORAGE.items():
        ini(
            _FOLDER / f"{kind}.conf",
            {
                "DEFAULT": {
                    **common, "bind_port": port, "devices": DATA / "swift", "mount_check": False, "workers": 1,
                    "fallocate_reserve": 0, "disable_fallocate": True,
                },
                "pipeline:main": {"pipeline": f"{kind}-server"},
                f"app:{kind}-server": {"use": f"egg:swift#{kind}", "recon_cache_path": _FOLDER},
            },
        )  # fmt: skip
    keystone = {**authtoken("swift", "object-store"), "delay_auth_decision": True}
    ini(
        _FOLDER / "proxy.conf",
        {
            "DEFAULT": {**common, "bind_port": SWIFT, "workers": 2},
            "pipeline:main": {"pipeline": _PIPELINE},
            "app:proxy-server": {
                "use": "egg:swift#proxy", "account_autocreate": True, "allow_account_management": True,
            },
            **{f"filter:{name}": {"use": f"egg:swift#{name}"} for name in _PLAIN_FILTERS},
            "filter:proxy-logging": {"use": "egg:swift#proxy_logging"},
            "filter:cache": {"use": "egg:swift#memcache", "memcache_servers": f"{IP}:{MEMCACHED}"},
            "filter:container-quotas": {"use": "egg:swift#container_quotas"},
            "filter:account-quotas": {"use": "egg:swift#account_quotas"},
            "filter:slo": {"use": "egg:swift#slo", "min_segment_size": 1, "rate_limit_under_size": 0},
            "filter:versioned_writes": {
                "use": "egg:swift#versioned_writes", "allow_versioned_writes": True, "allow_object_versioning": True,
            },
            "filter:authtoken": {"paste.filter_factory": "keystonemiddleware.auth_token:filter_factory", **keystone},
            # SERVICE_: accounts that a tenant reaches through a service alone
            "filter:keystoneauth": {
                "use": "egg:swift#keystoneauth", "reseller_prefix": "AUTH, SERVICE",
                "operator_roles": "admin, member, swiftoperator", "reseller_admin_role": "ResellerAdmin",
                "SERVICE_service_roles": "service",
            },
        },
    )  # fmt: skip
