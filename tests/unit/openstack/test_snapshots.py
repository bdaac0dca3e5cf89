"""What is temporary in Cinder is found by its marks and removed, whatever Cinder does meanwhile.

An HTTP server stands in for it: it says what the real one says, and fails where the real one cannot be made to.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from raksha.errors import CloudRefused, CloudUnavailable
from raksha.openstack.lent import LentLogin
from raksha.openstack.snapshots import CLAIM, TASK, Temporary, kept_snapshots

#: of a list, in one answer: less than is asked for
PAGE = 2


class Cinder(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.things: dict[str, dict[str, Any]] = {"snapshots": {}, "volumes": {}, "attachments": {}}
        self.deleted: list[str] = []
        #: each look at a thing that is being made or deleted brings it further
        self.looks = 2
        #: of the next requests that make something, whether their answer is lost
        self.lose_answers = False
        #: of the next snapshots: they come to nothing
        self.fail = False
        self.over_quota = False
        self._number = 0

    def make(self, noun: str, said: dict[str, Any], **more: Any) -> dict[str, Any]:
        self._number += 1
        thing = {
            "id": f"{noun[:4]}-{self._number}", "status": "available", "size": 1, "metadata": {}, "volume_id": None,
            "encrypted": False, **said, **more,
        }  # fmt: skip
        self.things[noun][thing["id"]] = thing
        return thing


class Handler(BaseHTTPRequestHandler):
    server: Cinder

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        noun, _, id = path.path.lstrip("/").partition("/")
        if id in ("", "detail"):
            self.listed(noun, {key: value[0] for key, value in parse_qs(path.query).items()})
        elif (thing := self.server.things[noun].get(id)) is None:
            self.answer(404, {"itemNotFound": {"message": "not there"}})
        else:
            self.answer(200, {noun[:-1]: dict(thing)})
            self.further(noun, thing)

    def further(self, noun: str, thing: dict[str, Any]) -> None:
        thing["left"] = thing.get("left", 0) - 1
        if thing["left"] > 0:
            return
        if thing["status"] == "creating":
            thing["status"] = "error" if self.server.fail else "available"
        elif thing["status"] == "deleting":
            del self.server.things[noun][thing["id"]]

    def listed(self, noun: str, query: dict[str, str]) -> None:
        # a filter by metadata is none here, as with an operator who has not allowed it
        ids = sorted(self.server.things[noun])
        ids = ids[ids.index(query["marker"]) + 1 :] if "marker" in query else ids
        found = [self.server.things[noun][id] for id in ids]
        if "volume_id" in query:
            found = [each for each in found if each["volume_id"] == query["volume_id"]]
        more = {f"{noun}_links": [{"rel": "next"}]} if len(found) > PAGE else {}
        self.answer(200, {noun: found[:PAGE], **more})

    def do_POST(self) -> None:
        noun = self.path.lstrip("/")
        said = self.body()[noun[:-1]]
        if self.server.over_quota:
            message = "SnapshotLimitExceeded: Maximum number of snapshots allowed (0) exceeded"
            self.answer(413, {"overLimit": {"message": message}})
            return
        thing = self.server.make(noun, said, status="creating", left=self.server.looks)
        if self.server.lose_answers:
            self.close_connection = True
            self.connection.close()
        else:
            self.answer(202, {noun[:-1]: thing})

    def do_PUT(self) -> None:
        found = re.fullmatch(r"/snapshots/([^/]+)/metadata", self.path)
        assert found
        self.server.things["snapshots"][found[1]]["metadata"] = self.body()["metadata"]
        self.answer(200, {"metadata": {}})

    def do_DELETE(self) -> None:
        noun, _, id = self.path.lstrip("/").partition("/")
        thing = self.server.things[noun].get(id)
        if thing is None:
            return self.answer(404, {"itemNotFound": {"message": "not there"}})
        if thing["status"] == "creating":
            return self.answer(400, {"badRequest": {"message": "it is being made"}})
        if any(each["volume_id"] == id for each in self.server.things["attachments"].values()):
            return self.answer(400, {"badRequest": {"message": "it is attached"}})
        if any(each.get("snapshot_id") == id for each in self.server.things["volumes"].values()):
            return self.answer(400, {"badRequest": {"message": "a volume lies on top of it"}})
        self.server.deleted.append(id)
        if noun == "attachments":
            del self.server.things[noun][id]
        else:
            thing |= {"status": "deleting", "left": self.server.looks}
        return self.answer(202)


@pytest.fixture
def cinder() -> Iterator[Cinder]:
    server = Cinder()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cloud(cinder: Cinder) -> LentLogin:
    return LentLogin("token", {"block-storage": f"http://127.0.0.1:{cinder.server_address[1]}"})


def unwanted() -> None:
    """Nobody wants the end of it."""


def temporary(cloud: LentLogin, epoch: int = 1, task: str = "task") -> Temporary:
    return Temporary(cloud, task, f"{task}.{epoch}")


def left(cinder: Cinder) -> dict[str, list[str]]:
    return {noun: sorted(things) for noun, things in cinder.things.items() if things}


def test_what_was_made_is_removed_in_the_order_that_storage_takes(cinder: Cinder, cloud: LentLogin) -> None:
    mine = temporary(cloud)
    snapshot = mine.wait_for_snapshot(mine.snapshot("theirs"), unwanted)
    assert snapshot.metadata == {TASK: "task", CLAIM: "task.1"} and snapshot.status == "available"
    volume = mine.volume(snapshot)
    mine.wait_for_volume(volume, unwanted)
    attached = cinder.make("attachments", {}, volume_id=volume)["id"]
    mine.undo()
    assert left(cinder) == {} and cinder.deleted == [attached, volume, snapshot.id]


def test_an_attempt_removes_its_own_and_the_next_one_all(cinder: Cinder, cloud: LentLogin) -> None:
    for epoch in (1, 2):
        temporary(cloud, epoch).snapshot("theirs")
    other = temporary(cloud, task="other").snapshot("theirs")
    owners = [cinder.make("snapshots", {})["id"] for _ in range(3)]
    temporary(cloud, 1).undo()
    marks = [each["metadata"].get(CLAIM) for each in cinder.things["snapshots"].values()]
    assert sorted(filter(None, marks)) == ["other.1", "task.2"]
    temporary(cloud, 3).clear()
    assert left(cinder) == {"snapshots": sorted([other, *owners])}


def test_an_answer_that_was_lost_leaves_nothing(cinder: Cinder, cloud: LentLogin) -> None:
    mine = temporary(cloud)
    cinder.lose_answers = True
    with pytest.raises(CloudUnavailable):
        mine.snapshot("theirs")
    assert left(cinder)
    mine.undo()  # it waits until it can be deleted
    assert left(cinder) == {}


def test_no_room_and_what_comes_to_nothing_are_told(cinder: Cinder, cloud: LentLogin) -> None:
    mine = temporary(cloud)
    cinder.fail = True
    made = mine.snapshot("theirs")
    with pytest.raises(CloudRefused, match="error"):
        mine.wait_for_snapshot(made, unwanted)
    mine.undo()
    assert left(cinder) == {}
    cinder.over_quota = True
    with pytest.raises(CloudRefused, match=r"413 .*SnapshotLimitExceeded"):
        mine.snapshot("theirs")


def test_what_is_kept_is_temporary_no_more(cinder: Cinder, cloud: LentLogin) -> None:
    mine = temporary(cloud)
    snapshot = mine.wait_for_snapshot(mine.snapshot("theirs"), unwanted)
    mine.keep(snapshot.id, job="job", run="run", vm="vm")
    mine.undo()
    temporary(cloud, 2).clear()
    assert [each.id for each in kept_snapshots(cloud, job="job", vm="vm")] == [snapshot.id]
    assert kept_snapshots(cloud, job="job", vm="another") == []
