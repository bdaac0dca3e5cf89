"""For WSGI servers that want a module (uWSGI, mod_wsgi): `application`, configured by /etc/raksha/raksha.conf.

With threads, not with greenlets.
"""

from __future__ import annotations

from raksha import config_api, config_database
from raksha.cmd.api import log_to_stderr, make_application
from raksha.db.session import connect

application = make_application(config_api.load(), connect(config_database.load()))
log_to_stderr()
