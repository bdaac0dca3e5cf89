"""Whose a VM is, as its definition says."""

from __future__ import annotations

from raksha.agent.seen import owner_of

OURS = """<domain><metadata><r:vm xmlns:r="urn:raksha:vm:1"><r:project> p1 </r:project><r:tag>daily</r:tag>
<r:tag>db</r:tag><r:hint key="tier">gold</r:hint></r:vm></metadata></domain>"""
NOVA = """<domain><metadata><nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
<nova:owner><nova:user uuid="u1">u</nova:user><nova:project uuid="p2">name</nova:project></nova:owner>
</nova:instance></metadata></domain>"""


def test_the_owner_of_the_host_says_it() -> None:
    assert owner_of(OURS) == ("p1", ("daily", "db"), {"tier": "gold"})


def test_nova_says_it() -> None:
    assert owner_of(NOVA) == ("p2", (), {})


def test_nobody_says_it() -> None:
    assert owner_of("<domain><metadata/></domain>") == (None, (), {})
    assert owner_of("<domain/>") == (None, (), {})
    other = NOVA.replace("http://openstack.org", "http://elsewhere.example")
    assert owner_of(other) == (None, (), {}), "what looks like Nova's is not"
