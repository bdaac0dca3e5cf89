"""Runs within Neutron: binds every port as a plain tap device that leads nowhere, so that servers with ports start
without any network agent."""

from neutron.db.models import port_forwarding  # noqa: F401
from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.plugins.ml2 import api
from sqlalchemy import orm


class TapMechanismDriver(api.MechanismDriver):
    def initialize(self):
        # the first request of a process ends in a 500 if it lists ports: an attribute of theirs is made with the first
        # query of any kind, and is asked for before it
        orm.configure_mappers()

    def bind_port(self, context):
        for segment in context.segments_to_bind:
            details = {portbindings.CAP_PORT_FILTER: False}
            status = constants.PORT_STATUS_ACTIVE
            context.set_binding(segment[api.ID], portbindings.VIF_TYPE_TAP, details, status=status)
            return
