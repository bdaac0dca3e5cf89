"""Which programs Raksha starts, where, and how: found in the source, so that a new call has to be thought about."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.virt.libvirt import image

SOURCE = Path(__file__).parents[2] / "raksha"
_STARTS = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput", "spawn", "system",
           "popen", "execv", "execve", "execvp", "execvpe", "execl", "execlp", "posix_spawn", "posix_spawnp",
           "create_subprocess_exec", "create_subprocess_shell"}  # fmt: skip
_OF = {"subprocess", "os", "asyncio", "processutils"}
#: where processes are started, and what they are
KNOWN = {
    "virt/libvirt/image.py": "qemu-img, with formats and limits",
    "virt/libvirt/nbd.py": "qemu-nbd and others that end with this process; of nodes whose formats are stated",
    "virt/libvirt/nbd_writer.py": "qemu-nbd, likewise",
    "virt/libvirt/freeze.py": "our own watchdog",
    "virt/libvirt/pull_job.py": "our own guard",
    "virt/libvirt/pull_place.py": "test, whether QEMU's user can write there",
    "virt/libvirt/ceph.py": "rbd, with the pool and image that libvirt or Cinder named",
    "openstack/attach.py": "umount, of a folder of ours",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield str(path.relative_to(SOURCE)), ast.parse(path.read_text())


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    """That start a process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            of = node.func
            whose = getattr(of.value, "id", "") if isinstance(of, ast.Attribute) else None
            name = getattr(of, "attr", None) or getattr(of, "id", "")
            if name in _STARTS and (whose in _OF or (whose is None and name not in ("run", "call", "system"))):
                yield node


def test_processes_are_started_where_that_is_known() -> None:
    found = {name for name, tree in sources() if any(calls(tree))}
    assert found == set(KNOWN)


def test_no_shell_reads_what_is_started() -> None:
    for name, tree in sources():
        for call in calls(tree):
            words = {keyword.arg: keyword.value for keyword in call.keywords}
            assert "shell" not in words and not {"system", "popen", "getoutput"} & {getattr(call.func, "attr", "")}, (
                name
            )
            first = call.args[0]
            assert not isinstance(first, ast.Constant | ast.JoinedStr), f"{name}:{call.lineno}: no argument list"


def test_image_tools_are_started_by_their_one_caller() -> None:
    for program, callers in (
        ("qemu-img", {"virt/libvirt/image.py"}),
        ("qemu-nbd", {"virt/libvirt/nbd.py", "virt/libvirt/nbd_writer.py"}),
        ("qemu-io", set()),
    ):
        found = {
            name for name, tree in sources() for node in ast.walk(tree)
            if isinstance(node, ast.List) and any(getattr(word, "value", None) == program for word in node.elts)
        }  # fmt: skip
        assert found == callers, program


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was started: a program in the place of qemu-img notes its arguments and limits."""
    note = tmp_path / "seen"
    program = tmp_path / "qemu-img"
    program.write_text(
        f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {note}\nulimit -v > {note}.memory\nulimit -t > {note}.cpu\n"
        'echo \'{"format-specific": {"data": {}}}\'\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return note


#: as a VM's owner might name a file
_NAMES = ("/a", "/a,b", "/json:{}", "/a\nb", "/a b;c", "/-o", "/é\u202e", "/$(id)", "/nbd:x")


@pytest.mark.parametrize("path", _NAMES)
def test_qemu_img_is_told_the_format_and_has_limits(seen: Path, path: str) -> None:
    for call in (
        lambda: image.rebase(path, "/below"),
        lambda: image.bitmaps(path),
        lambda: image.remove_bitmap(path, "bitmap"),
        lambda: image.commit(path, "/below", 60),
    ):
        call()
        words = seen.read_bytes().decode().split("\0")[:-1]
        # one argument, as it is, and never the first of an option
        assert words.count(path) == 1 and path.startswith("/")
        assert words[words.index("-f") + 1] == "qcow2"
        assert ("-b" in words) <= ("-F" in words or words[0] == "commit")
        assert int(Path(f"{seen}.memory").read_text()) == 2 * 1024**2
        assert words[0] == "commit" or int(Path(f"{seen}.cpu").read_text()) == 30


def test_the_limit_of_memory_is_hit() -> None:
    """Not only said: what asks for more does not get it."""
    asked = "import sys; sys.exit(0 if len(bytearray(3 << 30)) else 1)"
    limited = subprocess.run(
        ["prlimit", f"--as={2 * 1024**3}", "python3", "-c", asked], capture_output=True, check=False
    )
    assert limited.returncode != 0 and b"MemoryError" in limited.stderr


def test_what_is_said_of_a_disk_to_qemu_is_json_and_states_every_format() -> None:
    from raksha.virt.libvirt.domain_xml import Layer
    from raksha.virt.libvirt.nbd import node

    for path in _NAMES:
        layers = [Layer("/top", "file", "qcow2"), Layer(path, "file", "raw")]
        described = json.loads(json.dumps(node(layers, share=False)))
        assert described["driver"] == "qcow2" and described["backing"]["driver"] == "raw"
        assert described["backing"]["file"]["filename"] == path
        alone = node(layers[1:], share=False)
        assert alone["driver"] == "raw"
