"""What Nova, Cinder and Neutron say of a server, as it is stored with its backups.

Seen with a token of the server's own project: of what only operators see, nothing is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raksha.errors import CloudMissing, CloudRefused
from raksha.openstack.lent import LentLogin, asking
from raksha.server import AttachedVolume, FixedIp, Flavor, Port, Server, building


def describe(cloud: LentLogin, server_id: str) -> Server | None:
    """None: the project has no such server. Raises `CloudRefused`, `CloudUnavailable`."""
    try:
        with asking("compute"):
            shown: dict[str, Any] = cloud.compute().servers.get(server_id).to_dict()
    except CloudMissing:
        return None
    with asking("compute"):
        image = (shown.get("image") or {}).get("id")
        name, properties = _image(cloud, image) if image else (None, {})
        volumes = _volumes(cloud, server_id, boots=image is None)
        return Server(
            id=shown["id"],
            name=shown["name"],
            description=shown.get("description") or None,
            status=shown["status"],
            image_id=image,
            image_name=name,
            image_properties=properties,
            flavor=_flavor(shown["flavor"]),
            ports=_ports(cloud, server_id),
            security_groups=tuple(dict.fromkeys(each["name"] for each in shown.get("security_groups") or ())),
            key_name=shown.get("key_name") or None,
            metadata=_text(shown.get("metadata")),
            tags=tuple(shown.get("tags") or ()),
            availability_zone=shown.get("OS-EXT-AZ:availability_zone") or None,
            server_groups=tuple(shown.get("server_groups") or ()),
            config_drive=bool(shown.get("config_drive")),
            volumes=volumes,
        )


def describe_volume(cloud: LentLogin, volume_id: str) -> AttachedVolume:
    """A volume by itself, whatever it is attached to. Raises `CloudMissing`, `CloudRefused`, `CloudUnavailable`."""
    with asking("block-storage"):
        volume = cloud.volumes().volumes.get(volume_id).to_dict()
        return _volume({}, volume, bootable=str(volume.get("bootable")).lower() == "true", boot_index=None)


def _flavor(shown: Mapping[str, Any]) -> Flavor:
    return Flavor(
        name=shown["original_name"],
        vcpus=int(shown["vcpus"]),
        ram=int(shown["ram"]),
        disk=int(shown["disk"]),
        ephemeral=int(shown.get("ephemeral") or 0),
        swap=int(shown.get("swap") or 0),
        extra_specs=_text(shown.get("extra_specs")),
    )


def _image(cloud: LentLogin, image_id: str) -> tuple[str | None, dict[str, str]]:
    """Name and properties; nothing of an image that is gone."""
    try:
        with asking("image"):
            image = cloud.session().get(f"{cloud.endpoint('image')}/v2/images/{image_id}").json()
    except (CloudMissing, CloudRefused):
        return None, {}
    return image.get("name"), building(image)


def _ports(cloud: LentLogin, server_id: str) -> tuple[Port, ...]:
    with asking("network"):
        session, base = cloud.session(), f"{cloud.endpoint('network')}/v2.0"
        ports = session.get(f"{base}/ports", params={"device_id": server_id}).json()["ports"]
        names: dict[str, str | None] = {}
        for port in ports:
            network = port["network_id"]
            if network not in names:
                # a network that the project only has a port in may not be shown to it
                found = session.get(f"{base}/networks", params={"id": network, "fields": "name"}).json()["networks"]
                names[network] = found[0]["name"] if found else None
        return tuple(
            Port(
                id=port["id"],
                network_id=port["network_id"],
                network_name=names[port["network_id"]],
                mac_address=port["mac_address"],
                fixed_ips=tuple(
                    FixedIp(subnet_id=each["subnet_id"], ip_address=each["ip_address"]) for each in port["fixed_ips"]
                ),
                security_groups=tuple(port.get("security_groups") or ()),
                vnic_type=port.get("binding:vnic_type") or "normal",
            )
            for port in sorted(ports, key=lambda port: (port.get("created_at") or "", port["id"]))
        )


def _volumes(cloud: LentLogin, server_id: str, *, boots: bool) -> tuple[AttachedVolume, ...]:
    """`boots`: the server has no boot disk of its own."""
    with asking("compute"):
        # not by novaclient's own list: that writes ids into a file below the home, for completion
        path = f"/servers/{server_id}/os-volume_attachments"
        attached = list(cloud.compute().client.get(path)[1]["volumeAttachments"])
    attached.sort(key=lambda each: each.get("device") or "")
    found: list[AttachedVolume] = []
    for each in attached:
        with asking("block-storage"):
            volume = cloud.volumes().volumes.get(each["volumeId"]).to_dict()
            bootable = str(volume.get("bootable")).lower() == "true"
            # Nova tells no boot order: it is the first that can be booted from
            first = boots and bootable and not any(other.boot_index == 0 for other in found)
            found.append(_volume(each, volume, bootable=bootable, boot_index=0 if first else None))
    return tuple(found)


def _volume(
    attached: Mapping[str, Any], volume: Mapping[str, Any], *, bootable: bool, boot_index: int | None
) -> AttachedVolume:
    return AttachedVolume(
        id=volume["id"],
        name=volume.get("name") or None,
        size=int(volume["size"]),
        volume_type=volume.get("volume_type") or None,
        availability_zone=volume.get("availability_zone") or None,
        device=attached.get("device") or None,
        boot_index=boot_index,
        bootable=bootable,
        delete_on_termination=bool(attached.get("delete_on_termination")),
        multiattach=bool(volume.get("multiattach")),
        encrypted=bool(volume.get("encrypted")),
        metadata=_text(volume.get("metadata")),
        image_metadata=building(volume.get("volume_image_metadata") or {}),
    )


def _text(found: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(key): str(value) for key, value in (found or {}).items()}
