"""Documents of a vault: what msgspec does not promise by itself."""

from __future__ import annotations

import subprocess
import sys

from raksha.vault.metadata import FORMAT, RunDocument, encode

_RACE = """
import sys, threading
sys.setswitchinterval(1e-6)
from raksha.vault.metadata import RunDocument, decode
data, barrier, wrong = sys.stdin.buffer.read(), threading.Barrier(8), []
def read():
    barrier.wait()
    try:
        decode(data, RunDocument, "run.json")
    except BaseException as error:
        wrong.append(error)
threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(repr(wrong[0]) if wrong else 0)
"""


def test_the_first_documents_may_be_read_by_many_threads_at_once() -> None:
    document = RunDocument(
        format=FORMAT,
        number=1,
        backupjob="job",
        job_name="job",
        backupjobrun="run",
        started_at=1.0,
        taken_at=1.0,
        finished_at=1.0,
        skew_seconds=0,
        vms=[],
        host="host",
        raksha="test",
    )
    for _ in range(12):  # every third process crashed before decoders were made at import
        done = subprocess.run([sys.executable, "-c", _RACE], input=encode(document), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
