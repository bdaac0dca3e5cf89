"""`raksha serve`: the whole service in one process, for one host. Here are its options.

What it does is in `embedded.py`, which is brought in only when it is wanted.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

from raksha.cmd.output import Output

_ABOUT = """\
The REST API, the scheduler and the agent of this host in one process, with a database and a vault in a folder of its
own. The first start makes all that is needed and tells how to log in; later ones find everything as it was. It runs
until SIGTERM or SIGINT, and then until what is under way has ended or was put aside; a second signal puts it aside at
once.
"""


def add_to(verbs: Any) -> None:
    """The parser of `serve`."""
    parser = verbs.add_parser("serve", help="protect the VMs of this host by schedule, over a REST API",
                              description=_ABOUT)  # fmt: skip
    parser.set_defaults(call=_serve, quiet=False)
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="database, users, journal and temporary files; "
                        "default: /var/lib/raksha for root, else ~/.local/state/raksha")  # fmt: skip
    parser.add_argument("--bind", metavar="HOST:PORT", help="where the API listens; default: 127.0.0.1:9797")
    parser.add_argument("--vault", metavar="URL", help="for the first start: file:///path or swift://[prefix]; "
                        "default: a directory in the state folder")  # fmt: skip
    parser.add_argument("--connect", metavar="URI", help="libvirt to talk to")
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/raksha/raksha.conf, if it is there")
    parser.add_argument("--json", action="store_true", help="where it listens and how to log in as a JSON document")


def _serve(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    from raksha.cmd.embedded import Asked, serve

    asked = Asked(options.state_dir, options.bind, options.vault, options.connect, options.config)
    return serve(asked, output, cancel)
