"""Words and lines of the command line, without a hypervisor."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.cmd import told
from raksha.cmd.main import main
from raksha.cmd.output import Output, plain, table
from raksha.errors import BadArgument, ImageToolFailed, RunNotFound
from raksha.progress import human


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1024, "1 KiB"), (65536, "64 KiB"), (1500 * 1024, "1.46 MiB"),
     (999 * 1024**2, "999 MiB"), (5 * 1024**3, "5 GiB"), (3 * 1024**4, "3 TiB"), (7 * 1024**5, "7168 TiB")],
)  # fmt: skip
def test_sizes_as_people_read_them(size: int, words: str) -> None:
    assert human(size) == words


@pytest.mark.parametrize("text", ["two\nlines", "a\x1b[31mred", "bell\x07", "tab\there", "back\x9bhere\r"])
def test_nothing_that_a_terminal_obeys(text: str) -> None:
    assert plain(text).isprintable()
    assert plain("Grüße aus 東京, web-1") == "Grüße aus 東京, web-1"


def test_columns() -> None:
    shown = table(("A", "LONG HEADING"), [("wide cell", None), (1, "x")])
    assert shown == ["A          LONG HEADING", "wide cell  -", "1          x"]


def test_an_error_is_one_line_whatever_a_tool_said(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).error(ImageToolFailed(command="qemu-img info", detail="first\nsecond"))
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "raksha: `qemu-img info` failed: first second.\n"
    Output(as_json=True).error(RunNotFound(run="x\ny"))
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["code"] == "run_not_found" and document["fields"] == {"run": "x\ny"}


def test_steps_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    told_by = {(False, False): "a step\nwarning: w\n", (True, False): "warning: w\n", (False, True): ""}
    for (quiet, as_json), expected in told_by.items():
        output = Output(as_json=as_json, quiet=quiet)
        output.step("a step")
        output.warning("w")
        assert capsys.readouterr() == ("", expected)


def test_a_transfer_is_a_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    output.begin("vda", 2048)
    output.advance(2048, 100)
    assert capsys.readouterr().err == ""
    output.end()
    line = capsys.readouterr().err
    assert line.startswith("vda: 2 KiB in ") and line.endswith("/s)\n")
    output.begin("vdb", 0)
    output.end()
    assert capsys.readouterr().err == "", "nothing was done, nothing is told"


def test_exclusions_belong_to_a_vm_of_the_call() -> None:
    assert told.excluded(["a:vdb", "a:vdc", "b:c:vda"], ["a", "b:c"]) == {"a": {"vdb", "vdc"}, "b:c": {"vda"}}
    for text in ("vdb", "a:", ":vdb", "x:vdb", ""):
        with pytest.raises(BadArgument):
            told.excluded([text], ["a"])


def test_paths_of_disks() -> None:
    assert told.paths("--thin", ["vda=/a=b.qcow2"]) == {"vda": Path("/a=b.qcow2")}
    for text in ("vda", "vda=", "=x"):
        with pytest.raises(BadArgument, match="--thin"):
            told.paths("--thin", [text])


@pytest.fixture
def handlers() -> Iterator[None]:
    """`main` takes these two signals for the whole process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_wrong_command_is_told_with_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    usage = "usage: raksha"
    wrong = {(): usage, ("local",): usage, ("local", "bakcup"): usage, ("cloud",): "'cloud' is no command"}
    for words, says in wrong.items():
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert says in capsys.readouterr().err
