"""Tests against a real OpenStack that `python -m tests.openstack.cloud up` brings up on this machine."""
