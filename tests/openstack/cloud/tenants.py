"""What tenants find: an image, a flavor, a network, volume types."""

from __future__ import annotations

from tests.bed.boot_disk import boot_disk
from tests.openstack.cloud.rest import Cloud

#: of the image: how Nova builds the server
PROPERTIES = {"hw_qemu_guest_agent": "yes", "hw_rng_model": "virtio", "os_require_quiesce": "no"}


def up() -> None:
    admin = Cloud("admin")
    if not admin.glance.get("/images?name=raksha")["images"]:
        about = {"name": "raksha", "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
        image = admin.glance.post("/images", {**about, **PROPERTIES})["id"]
        kind = {"content-type": "application/octet-stream"}
        admin.glance.put(f"/images/{image}/file", data=boot_disk().read_bytes(), headers=kind)
    if "raksha" not in [flavor["id"] for flavor in admin.nova.get("/flavors")["flavors"]]:
        flavor = {"id": "raksha", "name": "raksha", "ram": 160, "disk": 1, "vcpus": 1}
        admin.nova.post("/flavors", {"flavor": flavor})
    types = {kind["name"] for kind in admin.cinder.get("/types")["volume_types"]}
    for name in ("nfs", "ceph"):
        if name not in types:
            kind = {"name": name, "extra_specs": {"volume_backend_name": name}}
            admin.cinder.post("/types", {"volume_type": kind})
    if not admin.neutron.get("/networks?name=shared")["networks"]:
        network = admin.neutron.post("/networks", {"network": {"name": "shared", "shared": True}})["network"]["id"]
        subnet = {"network_id": network, "cidr": "10.99.0.0/24", "ip_version": 4, "enable_dhcp": False}
        admin.neutron.post("/subnets", {"subnet": subnet})
