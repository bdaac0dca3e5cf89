"""A real OpenStack on one machine with Debian 12: no systemd, no KVM, everything on 127.0.0.1,
each daemon ended by its pid.

::

    layout.py          where everything is; ports, names, passwords
    daemons.py         start by hand, note the pid, end by that pid
    infrastructure.py  MariaDB, RabbitMQ, memcached, a libvirtd of its own, Ceph
    configuration.py   the files of all services
    identity.py        schemas, Keystone; users, roles, endpoints
    storage.py         Swift
    services.py        Glance, Placement, Neutron's API, Cinder, Nova
    tenants.py         image, flavor, network, volume types
    rest.py            the services' APIs, as tests want them
    __main__.py        up, down, status

`scripts/setup --cloud` installs Debian's packages and the services (from PyPI, in `.cache/cloud/venv`).
The network is Neutron's API alone: ports get a tap device that leads nowhere. The guests need none.
"""
