"""The configuration of all services, written anew at each start."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.openstack.cloud.layout import (
    CEPH_CONF,
    CEPH_POOL,
    CINDER,
    DATA,
    ETC,
    GLANCE,
    HOST,
    IP,
    KEYSTONE,
    KEYSTONE_URL,
    LIBVIRT_URI,
    LOG,
    MEMCACHED,
    MESSAGES,
    NEUTRON,
    PACKAGES,
    PASSWORD,
    REGION,
    SWIFT,
    VENV,
    database,
)

Section = Mapping[str, object]
GLANCE_URL = f"http://{IP}:{GLANCE}"
SWIFT_URL = f"http://{IP}:{SWIFT}"
#: what Cinder's NFS driver "mounts"
NFS_EXPORT = DATA / "nfs-export"
MOUNT_NFS = Path("/sbin/mount.nfs")
_MARK = "made for the tests of Raksha"


def write() -> None:
    for project in ("keystone", "glance", "placement", "nova", "cinder", "neutron"):
        (ETC / project).mkdir(exist_ok=True)
        (DATA / project / "lock").mkdir(parents=True, exist_ok=True)
    for project in ("glance", "cinder", "neutron", "nova"):
        for file in (VENV / "etc" / project).glob("*paste.ini"):
            shutil.copy(file, ETC / project)
    shutil.copy(VENV / "etc/cinder/resource_filters.json", ETC / "cinder")
    _keystone()
    _glance()
    _placement()
    _nova()
    _cinder()
    _neutron()


def ini(path: Path, sections: Mapping[str, Section]) -> None:
    lines = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_text(value)}" for key, value in section.items()), ""]
    path.write_text("\n".join(lines))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def client(user: str) -> dict[str, object]:
    """How a service logs in."""
    return {
        "auth_url": KEYSTONE_URL,
        "auth_type": "password",
        "user_domain_name": "Default",
        "project_domain_name": "Default",
        "project_name": "service",
        "username": user,
        "password": PASSWORD,
        "region_name": REGION,
    }


def authtoken(user: str, service_type: str) -> dict[str, object]:
    """How a service looks at the tokens of others."""
    return {
        **client(user),
        "www_authenticate_uri": f"http://{IP}:{KEYSTONE}/",
        "memcached_servers": f"{IP}:{MEMCACHED}",
        "service_token_roles": "service",
        "service_token_roles_required": True,
        "service_type": service_type,
    }


def _privsep(project: str, *sections: str) -> dict[str, Section]:
    """Everything runs as root: neither sudo nor rootwrap is asked."""
    helper = f"{VENV}/bin/privsep-helper --config-file {ETC}/{project}/{project}.conf"
    return {section: {"helper_command": helper} for section in sections}


def _lock(project: str) -> Section:
    return {"lock_path": DATA / project / "lock"}


def _keystone() -> None:
    ini(
        ETC / "keystone/keystone.conf",
        {
            "DEFAULT": {"log_file": LOG / "keystone-api.log"},
            "database": {"connection": database("keystone")},
            "token": {"provider": "fernet", "expiration": 86400},
            "fernet_tokens": {"key_repository": ETC / "keystone/fernet-keys"},
            "credential": {"key_repository": ETC / "keystone/credential-keys"},
            "cache": {
                "enabled": True,
                "backend": "dogpile.cache.memcached",
                "memcache_servers": f"{IP}:{MEMCACHED}",
            },
        },
    )


def _glance() -> None:
    data = DATA / "glance"
    for name in ("images", "staging", "tasks"):
        (data / name).mkdir(exist_ok=True)
    ini(
        ETC / "glance/glance-api.conf",
        {
            "DEFAULT": {
                "log_file": LOG / "glance-api.log",
                "enabled_backends": "fs:file",
                "enabled_import_methods": "[glance-direct]",
                "worker_self_reference_url": GLANCE_URL,
            },
            "database": {"connection": database("glance")},
            "glance_store": {"default_backend": "fs"},
            "fs": {"filesystem_store_datadir": data / "images"},
            "os_glance_staging_store": {"filesystem_store_datadir": data / "staging"},
            "os_glance_tasks_store": {"filesystem_store_datadir": data / "tasks"},
            "paste_deploy": {"flavor": "keystone"},
            "oslo_concurrency": _lock("glance"),
            "keystone_authtoken": authtoken("glance", "image"),
        },
    )


def _placement() -> None:
    ini(
        ETC / "placement/placement.conf",
        {
            "DEFAULT": {"log_file": LOG / "placement-api.log"},
            "api": {"auth_strategy": "keystone"},
            "placement_database": {"connection": database("placement")},
            "keystone_authtoken": authtoken("placement", "placement"),
        },
    )


def _nova() -> None:
    data = DATA / "nova"
    for name in ("instances", "mnt"):
        (data / name).mkdir(exist_ok=True)
    cinder = client("cinder")
    del cinder["region_name"]
    ini(
        ETC / "nova/nova.conf",
        {
            "DEFAULT": {
                "log_dir": LOG,
                "state_path": data,
                "instances_path": data / "instances",
                "transport_url": MESSAGES,
                "my_ip": IP,
                "host": HOST,
                "compute_driver": "libvirt.LibvirtDriver",
                "vif_plugging_is_fatal": False,
                "vif_plugging_timeout": 0,
                "enabled_apis": "osapi_compute",
                "reserved_host_memory_mb": 0,
                "ram_allocation_ratio": 4,
                "cpu_allocation_ratio": 16,
                "disk_allocation_ratio": 10,
                "rpc_response_timeout": 180,
                "sync_power_state_interval": 60,
                "block_device_allocate_retries_interval": 1,
                "heal_instance_info_cache_interval": 600,
                "allow_resize_to_same_host": True,
            },
            "api": {"auth_strategy": "keystone"},
            "wsgi": {"api_paste_config": ETC / "nova/api-paste.ini"},
            "api_database": {"connection": database("nova_api")},
            "database": {"connection": database("nova")},
            "oslo_concurrency": _lock("nova"),
            "conductor": {"workers": 1},
            "scheduler": {"workers": 1, "discover_hosts_in_cells_interval": 10},
            "filter_scheduler": {"track_instance_changes": False},
            "vnc": {"enabled": False},
            "spice": {"enabled": False},
            "libvirt": {
                "connection_uri": LIBVIRT_URI,
                "virt_type": "qemu",
                "cpu_mode": "none",
                "images_type": "qcow2",
                "hw_machine_type": "x86_64=pc",
                "nfs_mount_point_base": data / "mnt",
                "inject_partition": -2,
                "swtpm_enabled": False,
            },
            "glance": {"api_servers": GLANCE_URL},
            "cinder": {"os_region_name": REGION, **cinder},
            "neutron": client("neutron"),
            "placement": client("placement"),
            "service_user": {"send_service_user_token": True, **client("nova")},
            "oslo_messaging_rabbit": {"heartbeat_in_pthread": False, "rabbit_quorum_queue": False},
            "keystone_authtoken": authtoken("nova", "compute"),
            **_privsep("nova", "privsep", "nova_sys_admin", "vif_plug_ovs_privileged",
                       "vif_plug_linux_bridge_privileged", "privsep_osbrick"),
        },
    )  # fmt: skip


def _cinder() -> None:
    data = DATA / "cinder"
    for folder in (data / "mnt", data / "conversion", NFS_EXPORT):
        folder.mkdir(exist_ok=True)
    shares = ETC / "cinder/nfs_shares"
    shares.write_text(f"{IP}:{NFS_EXPORT}\n")
    shares.chmod(0o640)
    _mount_nfs()
    ini(
        ETC / "cinder/cinder.conf",
        {
            "DEFAULT": {
                "log_dir": LOG,
                "state_path": data,
                "transport_url": MESSAGES,
                "my_ip": IP,
                "host": HOST,
                "osapi_volume_listen": IP,
                "osapi_volume_listen_port": CINDER,
                "api_paste_config": ETC / "cinder/api-paste.ini",
                "resource_query_filters_file": ETC / "cinder/resource_filters.json",
                "auth_strategy": "keystone",
                "enabled_backends": "nfs,ceph",
                "default_volume_type": "ceph",
                "glance_api_servers": GLANCE_URL,
                "rpc_response_timeout": 180,
                "image_conversion_dir": data / "conversion",
            },
            "database": {"connection": database("cinder")},
            "oslo_concurrency": _lock("cinder"),
            "nfs": {
                "volume_backend_name": "nfs",
                "volume_driver": "cinder.volume.drivers.nfs.NfsDriver",
                "nfs_shares_config": shares,
                "nfs_mount_point_base": data / "mnt",
                "nfs_sparsed_volumes": True,
                "nfs_qcow2_volumes": False,
                "nfs_snapshot_support": True,
                "nas_secure_file_operations": False,
                "nas_secure_file_permissions": False,
                "nfs_mount_attempts": 1,
            },
            "ceph": {
                "volume_backend_name": "ceph",
                "volume_driver": "cinder.volume.drivers.rbd.RBDDriver",
                "rbd_pool": CEPH_POOL,
                "rbd_ceph_conf": CEPH_CONF,
            },
            # with auth_section Cinder would use the user's token, and Nova refuses assisted snapshots
            "nova": {"interface": "public", **client("nova")},
            "service_user": {"send_service_user_token": True, **client("cinder")},
            "key_manager": {
                "backend": "cinder.keymgr.conf_key_mgr.ConfKeyManager",
                "fixed_key": f"{1:064}",
            },
            "keystone_authtoken": authtoken("cinder", "block-storage"),
            **_privsep("cinder", "privsep", "cinder_sys_admin", "privsep_osbrick"),
        },
    )


def _mount_nfs() -> None:
    """The kernel has no NFS client: the exported directory is mounted as it is."""
    if MOUNT_NFS.exists() and _MARK not in MOUNT_NFS.read_text(errors="replace"):
        return
    # of a directory that is shared, each mount on top of such a mount would be in all the others as well: they double
    MOUNT_NFS.write_text(
        f"#!/bin/sh\n# {_MARK}: mount.nfs HOST:/FOLDER PLACE ...\n"
        'mountpoint -q "$2" && exit 0\n'
        'mount --bind "${1#*:}" "$2" && exec mount --make-private "$2"\n'
    )
    MOUNT_NFS.chmod(0o755)


def _neutron() -> None:
    ini(
        ETC / "neutron/neutron.conf",
        {
            "DEFAULT": {
                "log_dir": LOG,
                "state_path": DATA / "neutron",
                "bind_host": IP,
                "bind_port": NEUTRON,
                "transport_url": MESSAGES,
                "auth_strategy": "keystone",
                "core_plugin": "ml2",
                "service_plugins": "",
                "api_paste_config": ETC / "neutron/api-paste.ini",
                "notify_nova_on_port_status_changes": False,
                "notify_nova_on_port_data_changes": False,
                "dhcp_agent_notification": False,
                "rpc_workers": 0,
            },
            "database": {"connection": database("neutron")},
            "oslo_concurrency": _lock("neutron"),
            "nova": client("nova"),
            "placement": client("placement"),
            "ml2": {
                "type_drivers": "flat,local",
                "tenant_network_types": "local",
                "mechanism_drivers": "raksha_tap",
                "extension_drivers": "port_security",
            },
            "ml2_type_flat": {"flat_networks": "*"},
            "keystone_authtoken": authtoken("neutron", "network"),
        },
    )
    shutil.copy(Path(__file__).with_name("neutron_tap.py"), PACKAGES / "raksha_neutron_tap.py")
    info = PACKAGES / "raksha_neutron_tap-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: raksha-neutron-tap\nVersion: 1.0\n")
    (info / "RECORD").write_text("")
    (info / "entry_points.txt").write_text(
        "[neutron.ml2.mechanism_drivers]\nraksha_tap = raksha_neutron_tap:TapMechanismDriver\n"
    )
