"""Which walk passes which crash point. tests/unit/test_crash_names.py compares this with the source, so a new point
needs a line here, and each walk makes sure that it passes what stands here: so "all" is checked.
"""

from __future__ import annotations

#: names of points, by the walk that passes them and its engine; each stands with the first walk that does
WALKED = {
    ("an increment", "overlay"): """
        directory.link directory.rename journal.add_layer journal.add_trash journal.base_left journal.begin journal.done
        journal.forget_layers journal.run_begin journal.run_durable journal.set_layers journal.set_up
        journal.settle_runs libvirt.blockCommit libvirt.snapshotCreateXML overlay.create overlay.fill overlay.mark
        overlay.note trash.move vault.prepare vault.put.BackupMetadata vault.put.VMMetadata vault.put.epoch
        vault.put.run.json vault.put.segment vault.put_file.BackupMap vault.put_manifest.Backup
    """,
    ("an increment", "pull"): """
        journal.add_bitmaps journal.forget_bitmap journal.set_bitmaps libvirt.abortJob libvirt.backupBegin
        libvirt.checkpointCreateXML libvirt.delete scratch.make scratch.remove
    """,
    ("a first backup", "overlay"): "vault.put.key vault.put.vault.json",
    ("a backup of a VM that is shut off", "overlay"): "journal.count_from",
    ("a backup of a VM that is shut off", "pull"): "journal.bitmap_counts_from",
    ("a release", "overlay"): "journal.forget_trash libvirt.blockJobAbort trash.delete",
    ("a release of a VM that is shut off", "overlay"): "libvirt.defineXML qemu-img.commit",
    ("a release of a VM that is shut off", "pull"): "qemu-img.bitmap",
    ("a restored VM", "overlay"): "restore.create restore.link restore.settle restore.unlink",
    ("a prune", "overlay"): """
        directory.unlink vault.delete.Backup vault.delete.BackupMap vault.delete.BackupMetadata vault.delete.VMMetadata
        vault.delete.run.json vault.delete.segment
    """,
    ("a freeze", "overlay"): "libvirt.fsFreeze libvirt.fsThaw libvirt.agentSetResponseTimeout",
}

#: names of points that no walk passes, and why, or who dies there
NOT_WALKED = {
    "boot.make": "test_boots.py::test_an_agent_that_dies_leaves_nothing",
    "boot.remove": "test_boots.py::test_an_agent_that_dies_leaves_nothing",
    "libvirt.createXML": "test_boots.py::test_an_agent_that_dies_leaves_nothing",
    "libvirt.destroy": "of a test whose libvirtd was restarted; the next sweep does it again: test_boots.py",
    "commit.number": "tests/service/test_scheduler_kills.py",
    "commit.publish": "tests/service/test_scheduler_kills.py",
    "consolidate.swap": "tests/service/test_scheduler_kills.py",
    "delete.copies": "tests/service/test_scheduler_kills.py",
    "delete.rows": "tests/service/test_scheduler_kills.py",
    "journal.keep_result": "tests/service/test_agent_kills.py",
    "journal.forget_result": "tests/service/test_agent_kills.py",
    "restore.exchange": "tests/service/test_agent_kills.py",
    "restore.settle_in_place": "in place of another disk, by the service; the exchange after it is what counts",
    "restore.put_back": "undoes an exchange whose VM cannot be defined; the old disk has its own name until then",
    "journal.add_fence": "test_fence.py::test_killed_between_the_note_and_the_flag",
    "fence.set": "an attribute: test_fence.py::test_killed_between_the_note_and_the_flag, test_stale_flags_are_lifted",
    "journal.forget_fence": "after the flag is down; a stale note is taken for a flag to take down",
    "journal.orphan_layers": "a note of what is seen, and seen again by the next run",
    "journal.run_ended": "a run that fails; who does not come to note it is found out by the next one",
    "overlay.remove": "an empty layer that came into no chain, or trash_hours = 0",
    "libvirt.resume": "a guest without space for its layers goes on, or is found standing again: test_space.py",
    "libvirt.createWithFlags": "the start of a VM that was restored, as the last thing",
    "libvirt.undefineFlags": "undoes the definition of a restored VM after an error",
    "qemu-img.rebase": "under an intent, and the same again: test_kills.py::test_a_merge_that_never_came_to_disk",
    "restore.rename": "instead of restore.link, on file systems without hard links",
    "restore.clear": "removes what a killed restore left, or what was not removed is removed by the next one",
    "restore.tpm": "files for a VM that does not exist yet; the next attempt replaces them",
    "export.create": "a hidden directory, which the next export removes",
    "export.rename": "one directory, hidden or not",
}


def must_pass(walk: str, engine: str) -> set[str]:
    """What this walk is there for."""
    return set(WALKED.get((walk, engine), "").split())
