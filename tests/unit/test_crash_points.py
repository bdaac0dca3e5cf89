"""Nothing that changes the world goes past the wrappers that make crash points; and the points do what they say."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import raksha

ROOT = Path(raksha.__file__).parent

#: methods of libvirt's objects that only ask, or tell us of events; everything else must be a crash point
LIBVIRT_READS = {
    "XMLDesc", "UUIDString", "name", "isActive", "isPersistent", "state", "hasManagedSaveImage", "jobInfo",
    "blockInfo", "blockJobInfo", "connect", "backupGetXMLDesc", "checkpointLookupByName", "listAllCheckpoints",
    "getName", "domainEventRegisterAny", "domainEventDeregisterAny", "lookupByUUIDString", "lookupByName",
    "listAllDomains", "close", "setKeepAlive", "ID", "getURI", "getXMLDesc", "diskErrors", "getLibVersion",
    "getDomainCapabilities", "newStream", "openConsole",
    "setBlockThreshold",  # QEMU tells us once, and forgets it
}  # fmt: skip
#: calls that change files, by name: of `os`, `shutil` or a path
FILE_CHANGES = {
    "unlink", "rename", "replace", "link", "symlink_to", "hardlink_to", "mkdir", "makedirs", "rmdir", "rmtree",
    "removedirs", "write_bytes", "write_text", "touch", "setxattr", "removexattr", "truncate", "ioctl",
}  # fmt: skip
#: where files are changed on purpose without a point, and why that is no state that a kill could leave behind
EXEMPT = {
    ("api/http_basic.py", "write_private"): "written beside, then renamed: it is there whole or not at all",
    ("api/user_file.py", "_replace"): "one file, there or not",
    ("cmd/http_thread.py", "stop"): "a socket, made anew at the next start",
    ("cmd/state_folder.py", "alone"): "an empty directory, and a lock, which is the lock of the file",
    ("cmd/state_folder.py", "opened"): "an empty file, in which the database has its transactions",
    ("cmd/state_folder.py", "_make"): "an empty directory",
    ("agent/host.py", "_spool"): "an empty directory of ours",
    ("agent/notes.py", "__init__"): "notes, which may be missing or torn: what is stored is then sent again",
    ("agent/notes.py", "forget"): "notes of a task that has ended; they are no other task's",
    ("agent/in_place.py", "_remove"): "a restored file that is not used",
    ("agent/in_place.py", "_restore"): "what an earlier attempt restored and did not use",
    ("agent/restore_task.py", "_own"): "an empty directory of ours",
    ("agent/local.py", "_spool"): "an empty directory of ours",
    ("backup/disk.py", "destination"): "the same directory",
    ("journal.py", "_lock"): "a lock is the lock of the file, not the file",
    ("journal.py", "__init__"): "directories and file of the journal itself; what is in it are transactions",
    ("virt/libvirt/nbd.py", "close"): "socket directories; those of a killed process are swept",
    ("virt/libvirt/nbd.py", "sweep"): "that sweep",
    ("virt/libvirt/nbd_writer.py", "close"): "a socket directory; those of a killed process are swept",
    ("openstack/attach.py", "_unmount"): "empty directories of mounts; those of a killed process are swept",
    ("virt/libvirt/overlay_file.py", "check_space"): "an empty directory of ours",
    ("virt/libvirt/overlay_file.py", "_named"): "undoes the creation, which is a point, after an error",
    ("virt/libvirt/fence.py", "_flags"): "asks",
    ("virt/libvirt/pull_place.py", "check_space"): "an empty directory of ours",
    ("virt/libvirt/trash.py", "_remove"): "the empty directory",
    ("virt/libvirt/trash.py", "_delete"): "the empty directory",
    ("virt/libvirt/hook.py", "install_hook"): "written beside, then renamed: it is there whole or not at all",
    ("virt/libvirt/hook.py", "remove_hook"): "one file, there or not",
    ("vault/directory.py", "prepare"): "within vault.prepare",
    ("vault/directory.py", "_make"): "within the point of the store's call",
    ("vault/directory.py", "_remove_empty"): "within the point of the store's call",
    ("vault/directory.py", "_walk"): "removes what no reader sees",
    ("vault/directory.py", "_remove_stale"): "removes what no reader sees",
    ("vault/directory.py", "__exit__"): "removes a temporary file of its own",
    ("restore/export.py", "_write"): "within the hidden directory",
    ("restore/export.py", "_staging"): "the hidden directory itself",
    ("restore/files.py", "discard"): "undoes the creation, which is a point, after an error",
    ("restore/leftovers.py", "mark"): "on a file that is hidden still",
    ("restore/leftovers.py", "unmark"): "within restore.settle",
    ("restore/targets.py", "prepare"): "a hidden file",
    ("vault/image.py", "write_tables"): "a file without a name",
    ("agent/storage_shelved.py", "reach"): "an empty directory of ours",
    ("openstack/shelved.py", "fetch"): "a file without a name",
    ("restore/tpm.py", "put_tpm_state"): "within restore.tpm",
    ("restore/tpm.py", "_put"): "within restore.tpm",
}


@dataclass(frozen=True)
class Call:
    module: str
    function: str
    node: ast.Call
    #: what the `with` statements around it call
    contexts: tuple[str, ...]

    @property
    def name(self) -> str:
        called = self.node.func
        return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""

    @property
    def guarded(self) -> bool:
        return any(text.startswith("crash.around(") for text in self.contexts)

    def __str__(self) -> str:
        return f"{self.module}:{self.node.lineno} {self.function}: {ast.unparse(self.node)[:80]}"


def calls(tree: ast.AST, module: str) -> Iterator[Call]:
    """Every call, with the function and the `with` statements that it is in."""

    def visit(node: ast.AST, function: str, contexts: tuple[str, ...]) -> Iterator[Call]:
        if isinstance(node, ast.FunctionDef):
            function, contexts = node.name, ()
        if isinstance(node, ast.With):
            for item in node.items:
                yield from visit(item, function, contexts)
                contexts = (*contexts, ast.unparse(item.context_expr))
            for each in node.body:
                yield from visit(each, function, contexts)
            return
        if isinstance(node, ast.Call):
            yield Call(module, function, node, contexts)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, contexts)

    yield from visit(tree, "", ())


def modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "crash.py"
    }


def all_calls() -> list[Call]:
    return [call for module, tree in modules().items() for call in calls(tree, module)]


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_only_the_wrapper_talks_to_libvirt() -> None:
    found = {module for module, tree in modules().items() if {"libvirt", "libvirt_qemu"} & imported(tree)}
    # the watchdog is a process of its own, which does nothing but thaw
    assert found == {"virt/libvirt/connection.py", "virt/libvirt/thaw_watchdog.py"}


def test_what_changes_something_at_libvirt_is_a_point() -> None:
    tree = modules()["virt/libvirt/connection.py"]
    objects = {"self._domain", "self._connection", "checkpoint", "connection", "domain"}
    wrapped = {
        id(argument)
        for call in calls(tree, "connection.py")
        # `_open` makes its calls by `_change`
        if ast.unparse(call.node.func) in ("self._change", "self._open")
        for argument in call.node.args
    }
    wrapped |= {id(call.node.func) for call in calls(tree, "connection.py") if call.guarded}
    past = [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) in objects
        and node.attr not in LIBVIRT_READS
        and id(node) not in wrapped
    ]
    assert past == []


def test_every_write_to_the_journal_is_a_point() -> None:
    words = ("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER")
    past = [
        str(call)
        for call in calls(modules()["journal.py"], "journal.py")
        if call.name in ("execute", "executemany", "executescript")
        and call.node.args
        and any(word in ast.unparse(call.node.args[0]).upper() for word in words)
        and not any("_transaction(" in text for text in call.contexts)
    ]
    assert past == []
    transaction = next(
        node for node in ast.walk(modules()["journal.py"])
        if isinstance(node, ast.FunctionDef) and node.name == "_transaction"
    )  # fmt: skip
    assert "crash.around(" in ast.unparse(transaction)


def test_other_databases_are_temporary() -> None:
    found = [call for call in all_calls() if ast.unparse(call.node.func) == "sqlite3.connect"]
    kept = [call for call in found if ast.unparse(call.node.args[0]) != "''"]
    # the hook reads the journal only: that QEMU may start must not wait for it
    assert {call.module for call in kept if "mode=ro" not in ast.unparse(call.node)} == {"journal.py"}


def test_every_image_tool_that_writes_is_a_point() -> None:
    reads = {"info", "check", "map", "measure"}
    past = [
        str(call)
        for call in calls(modules()["virt/libvirt/image.py"], "virt/libvirt/image.py")
        if call.name == "_run" and call.function != "_change"
        and not any(ast.unparse(call.node.args[0]).startswith(f"['{verb}'") for verb in reads)
    ]  # fmt: skip
    assert past == []
    elsewhere = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == "qemu-img"
    }
    assert elsewhere == {"virt/libvirt/image.py"}


def test_every_change_of_a_file_is_a_point_or_has_a_reason() -> None:
    def changes(call: Call) -> bool:
        if call.name in FILE_CHANGES:
            # str.replace and msgspec.structs.replace are other things
            return call.name != "replace" or ast.unparse(call.node.func) == "os.replace"
        return ast.unparse(call.node.func) == "os.open" and "O_CREAT" in ast.unparse(call.node)

    found = [call for call in all_calls() if changes(call)]
    past = [str(call) for call in found if not call.guarded and (call.module, call.function) not in EXEMPT]
    assert past == []
    used = {(call.module, call.function) for call in found}
    assert set(EXEMPT) <= used, "reasons for what is not there any more"


def test_stores_are_opened_with_points() -> None:
    made = {call.module for call in all_calls() if call.name in ("DirectoryStore", "SwiftStore")}
    assert made == {"vault/address.py"}
    opened = [call for call in calls(modules()["vault/address.py"], "vault/address.py") if call.name == "RetryStore"]
    assert [ast.unparse(call.node.args[0]) for call in opened] == ["with_crash_points(store)"]


def test_every_change_of_a_store_is_a_point() -> None:
    """The decorator guards every method of the protocol that does not only read."""
    reads = {"get", "head", "names", "parts", "close"}
    protocol, decorator = (
        next(node for node in ast.walk(modules()[module]) if isinstance(node, ast.ClassDef) and node.name == name)
        for module, name in (("vault/store.py", "Store"), ("vault/crash_store.py", "CrashStore"))
    )
    methods = {node.name: ast.unparse(node) for node in decorator.body if isinstance(node, ast.FunctionDef)}
    for node in protocol.body:
        if isinstance(node, ast.FunctionDef) and node.name not in reads:
            assert "around(" in methods[node.name], node.name


VICTIM = """
from raksha import crash
for _ in range(3):
    with crash.around("place"):
        print("at", flush=True)
print("end")
"""


def victim(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", VICTIM], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_nothing_happens_unless_asked(tmp_path: Path) -> None:
    done = victim(tmp_path)
    assert (done.returncode, done.stdout) == (0, "at\nat\nat\nend\n")


@pytest.mark.parametrize(("point", "printed"), [("place", 0), ("place:2", 1), ("place.done", 1), ("place.done:3", 3)])
def test_a_process_dies_at_the_place_it_was_told(tmp_path: Path, point: str, printed: int) -> None:
    done = victim(tmp_path, RAKSHA_CRASH_AT=point)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "at\n" * printed)


def test_a_process_can_be_stopped_instead(tmp_path: Path) -> None:
    told = {**os.environ, "RAKSHA_CRASH_AT": "place.done", "RAKSHA_CRASH_SIGNAL": "STOP"}
    with subprocess.Popen([sys.executable, "-c", VICTIM], env=told, stdout=subprocess.PIPE, text=True) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        assert process.communicate()[0] == "at\nat\nat\nend\n"


def test_a_trace_has_every_place(tmp_path: Path) -> None:
    victim(tmp_path, RAKSHA_CRASH_TRACE=str(tmp_path / "trace"))
    assert (tmp_path / "trace").read_text() == "place\nplace.done\n" * 3
