"""For WSGI servers that want a module (uWSGI, mod_wsgi): `application`, configured by /etc/raksha/raksha.conf.

With threads, not with greenlets.
"""

from __future__ import annotations

from raksha import config_database, config_notifications
from raksha.cmd.api import authenticator, load, log_to_stderr, make_application, waker
from raksha.db.session import connect

_settings, _scheduling = load()
_who, _grantor, _servers = authenticator(_settings, None)
application = make_application(
    _settings,
    connect(config_database.load(), notify=config_notifications.load().enabled),
    _who,
    wake=waker(_scheduling),
    grantor=_grantor,
    servers=_servers,
)
log_to_stderr()
