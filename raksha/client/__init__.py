"""The Python library for the REST API of Raksha, over a session of keystoneauth1.

    from keystoneauth1 import session
    from keystoneauth1.http_basic import HTTPBasicAuth
    from raksha.client import Client

    client = Client(session.Session(HTTPBasicAuth("http://127.0.0.1:9797", "admin", password)), project_id="default")
    job = client.jobs.create("nightly", vms=[{"id": client.vms.find("web").id}])
    run = client.runs.start(job.id)
    for run in client.runs.watch(job.id, run.id):
        print(run.progress.percent)

Managers: `client.jobs`, `runs`, `restores`, `verifications`, `vms`, `vaults`, `services`, `usage`, `limits`,
`previews`. What they take
is what docs/api.md says of bodies, as keyword arguments; what they give are records (`raksha.client.records`), frozen,
which pass over fields that a later API adds. Lists are iterators that fetch page after page, `page()` gives one page.
Everything that goes wrong is a `raksha.client.errors.ClientError`; what the API refused is an `ApiError`, with the
request id. A client may be used by one thread at a time, as its session.

No other part of Raksha is imported, so `pip install raksha[client]` needs neither libvirt nor Flask nor a database; and
the command line (`raksha.client.shell`, `raksha.client.osc`) stands on this library and on nothing else of Raksha.
"""

from raksha.client.client import SERVICE_TYPE, Client
from raksha.client.errors import ApiError, ClientError

__all__ = ["SERVICE_TYPE", "ApiError", "Client", "ClientError"]
