"""Every error that Raksha raises on purpose.

An error carries fields, a one-line message, a hint (what to do next) and the exit code of its family.
The text lives on the class, so that the same fault reads the same everywhere; callers pass fields only.

Not here: HTTP. A layer that speaks HTTP maps `code` to a status.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RakshaError(Exception):
    """Base of all errors. `message` and `hint` are format strings over the fields given."""

    #: stable machine name, `^[a-z_]+$`
    code: ClassVar[str] = "error"
    message: ClassVar[str] = "{detail}"
    hint: ClassVar[str] = ""
    #: exit code of the command line, see docs/cli.md
    exit_code: ClassVar[int] = 1
    #: the same call may succeed later without anybody changing anything
    retryable: ClassVar[bool] = False

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.message.format_map(_Fields(fields)))

    def advice(self) -> str:
        """What a person can do next, or an empty string."""
        return self.hint.format_map(_Fields(self.fields))

    def document(self) -> dict[str, Any]:
        """For a database, an API or another process: fields that JSON does not know become text."""
        fields = {
            name: value if value is None or isinstance(value, str | int | float | bool) else str(value)
            for name, value in self.fields.items()
        }
        told = {"code": self.code, "message": str(self), "hint": self.advice(), "fields": fields}
        return {**told, "retryable": self.retryable}

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.fields))


def _rebuild(kind: type[RakshaError], fields: dict[str, Any]) -> RakshaError:
    return kind(**fields)


class _Fields(dict[str, Any]):
    """A missing field must not turn one error into another."""

    def __missing__(self, key: str) -> str:
        return f"<{key}?>"


# -- families: they fix the exit code ---------------------------------------------------------------


class NotFound(RakshaError):
    """Something that was named does not exist."""

    exit_code = 3


class Refused(RakshaError):
    """The request is understood, and doing it would be wrong or unsafe. Nothing was changed."""

    exit_code = 4


class VaultError(RakshaError):
    """The vault could not be read or written."""

    exit_code = 5


class Damaged(RakshaError):
    """Stored data is missing or not what was stored. Nothing wrong was handed out."""

    exit_code = 6


class NeedsAttention(RakshaError):
    """A person must look: neither going on nor undoing is proven safe. Every file is in place."""

    exit_code = 7


class Interrupted(RakshaError):
    code = "interrupted"
    message = "Interrupted; nothing half-made was left visible."
    exit_code = 130


class SettingsWrong(RakshaError):
    code = "settings_wrong"
    message = "The configuration cannot be used: {detail}."
    hint = "etc/raksha.conf.sample shows every setting."
    exit_code = 2


class BadArgument(RakshaError):
    code = "bad_argument"
    message = "{argument}: {detail}."
    exit_code = 2


# -- vault ------------------------------------------------------------------------------------------


class ObjectMissing(Damaged):
    code = "object_missing"
    message = "The vault has no object {name}."
    hint = "`raksha local verify` lists every restore point that needs it."


class ObjectExists(VaultError):
    code = "object_exists"
    message = "The vault already has an object {name}; it was not overwritten."
    hint = "Another writer may be at work, or foreign content stands at our names."


class ObjectTruncated(Damaged):
    code = "object_truncated"
    message = "Object {name} is shorter than recorded: wanted {wanted} bytes, got {got}."
    hint = "`raksha local verify --data` lists every restore point that needs it."


class ObjectCorrupt(Damaged):
    code = "object_corrupt"
    message = "Object {name} is not what was stored: {detail}."
    hint = "`raksha local verify --data` lists every restore point that needs it."


class VaultUnavailable(VaultError):
    code = "vault_unavailable"
    message = "The vault {url} did not answer: {detail}."
    hint = "Check the address and the network, then run the same command again."
    retryable = True


class VaultAccessDenied(VaultError):
    code = "vault_access_denied"
    message = "The vault {url} refused access: {detail}."
    hint = "Check the credentials (OS_* or ST_* variables) or the permissions of the directory."


class VaultFull(VaultError):
    code = "vault_full"
    message = "The vault {url} is full or over its quota: {detail}."
    hint = "Free space, raise the quota, or `raksha local prune`; then run the backup again."


class VaultForeign(Refused):
    code = "vault_foreign"
    message = "{url} holds something that is not a Raksha vault: {detail}."
    hint = "Give an empty directory or container prefix."


class VaultNotFound(NotFound):
    code = "vault_not_found"
    message = "There is no vault at {url}."
    hint = "The first `raksha local backup` makes one; check the address."


class VaultNewer(Refused):
    code = "vault_newer"
    message = "The vault {url} has format {found}; this Raksha reads up to {known}."
    hint = "Use a newer Raksha."


class VaultWriterOther(Refused):
    code = "vault_writer_other"
    message = "The vault {url} belongs to another writer: {writer}."
    hint = "Reading works from anywhere. If that writer is gone for good, repeat with --take-over."


class VaultBusy(Refused):
    code = "vault_busy"
    message = "Another command on this host is writing to the vault {url} (pid {pid})."
    hint = "Wait until it ends."
    retryable = True


class BadVaultUrl(Refused):
    code = "bad_vault_url"
    message = "{url!r} is no vault address: {detail}."
    hint = "Use file:///absolute/path or swift://CONTAINER-PREFIX."
    exit_code = 2


class BadName(Refused):
    code = "bad_name"
    message = "{name!r} cannot be the name of {noun}: {detail}."
    exit_code = 2


# -- restore points ---------------------------------------------------------------------------------


class RunNotFound(NotFound):
    code = "run_not_found"
    message = "The vault has no restore point {run!r}."
    hint = "`raksha local list` shows what there is."


class RunAmbiguous(NotFound):
    code = "run_ambiguous"
    message = "{run!r} fits several restore points: {candidates}."
    hint = "Give more of the id."


class ResourceNotFound(NotFound):
    code = "resource_not_found"
    message = "Restore point {run} has no disk {resource!r}."
    hint = "`raksha local show {run}` lists its VMs and disks."


class ParentMissing(Damaged):
    code = "parent_missing"
    message = "Restore point {run} needs its parent {parent}, which the vault does not have."
    hint = "Restore an older point, or bring the parent's objects back."


class ChainIncompatible(Refused):
    code = "chain_incompatible"
    message = "The maps below {name} cannot be laid over each other: {detail}."
    hint = "Restore an older point of the chain; the next full backup starts a new one."


class MetadataInvalid(Damaged):
    code = "metadata_invalid"
    message = "{name} does not hold what the format says: {detail}."


# -- VMs and disks ----------------------------------------------------------------------------------


class JournalUnusable(RakshaError):
    code = "journal_unusable"
    message = "The journal at {path} cannot be used: {detail}."
    hint = "Nothing is captured without it. Check the directory, its permissions and the space on its disk."


class HostFailed(RakshaError):
    code = "host_failed"
    message = "A file of this host could not be used: {detail}."
    hint = "Is there space in --state-dir and the temporary directory, and may this user write there?"


class HypervisorUnavailable(RakshaError):
    code = "hypervisor_unavailable"
    message = "libvirt at {uri} did not answer: {detail}."
    hint = "Is libvirtd running, and may this user talk to it?"
    retryable = True


class LibvirtFailed(RakshaError):
    code = "libvirt_failed"
    message = "libvirt could not {action} for VM {vm}: {detail}."
    #: libvirtd was restarted, QEMU ended, something else was at work
    retryable = True


class VmNotFound(NotFound):
    code = "vm_not_found"
    message = "There is no VM {vm!r} at {uri}."
    hint = "`raksha local vms` lists them."


class DiskNotFound(NotFound):
    code = "disk_not_found"
    message = "VM {vm} has no disk {disk!r}; it has {known}."


class VmWithoutDisks(Refused):
    code = "vm_without_disks"
    message = "VM {vm} has no disk to protect."
    hint = "Cdroms, floppies, read-only and excluded disks are left out."


class DiskUnsupported(Refused):
    code = "disk_unsupported"
    message = "Disk {disk} of VM {vm} cannot be protected: {detail}."
    hint = "Leave it out with --exclude {vm}:{disk}."


class VmUnsupported(Refused):
    code = "vm_unsupported"
    message = "VM {vm} cannot be protected: {detail}."


class VmBusy(Refused):
    code = "vm_busy"
    message = "VM {vm} is busy: {detail}."
    hint = "Wait until that ends, then run the backup again."
    retryable = True


class ForeignChain(Refused):
    code = "foreign_chain"
    message = "The disk chain of {vm}:{disk} holds {path}, which is not ours, above an overlay of ours."
    hint = "Remove that snapshot first (virsh blockcommit), then run again. Nothing was touched."


class LayerUnknown(Refused):
    code = "layer_unknown"
    message = "The disk chain of {vm}:{disk} holds {path}, an overlay of Raksha that this journal does not know."
    hint = (
        "Use the state directory it was made with; on another host, the vault that has the last backup. "
        "Or merge it with virsh blockcommit. Nothing was touched."
    )


class OverlayExists(Refused):
    code = "overlay_exists"
    message = "{path} exists already; it was not overwritten."
    hint = "It may be left over from another tool. Move it away, then run the backup again."


class NoSpaceForOverlay(Refused):
    code = "no_space_for_overlay"
    message = "{path} has {free} bytes free; an overlay for {vm}:{disk} wants at least {wanted}."
    hint = "Free space, or choose another directory with --overlay-dir."


class NoSpaceForScratch(Refused):
    code = "no_space_for_scratch"
    message = "{path} has {free} bytes free; a backup of VM {vm} wants at least {wanted} there while it runs."
    hint = "Free space, or choose another directory with scratch_dir in /etc/raksha/raksha.conf."


class ScratchFull(RakshaError):
    code = "scratch_full"
    message = "VM {vm} wrote more while it was backed up than {path} had room for; the backup was given up in time."
    hint = "Free space there, or choose another directory with scratch_dir in /etc/raksha/raksha.conf."


class QuiesceFailed(Refused):
    code = "quiesce_failed"
    message = "The file systems of VM {vm} could not be frozen: {detail}."
    hint = "Is the guest agent running inside? --quiesce auto goes on without it."


class CaptureFailed(RakshaError):
    code = "capture_failed"
    message = "VM {vm} could not be captured: {detail}."
    retryable = True


class CommitFailed(RakshaError):
    code = "commit_failed"
    message = "The layers of {vm}:{disk} could not be merged: {detail}."
    hint = "The VM runs on and every layer is in place; the next backup, or `raksha local release`, tries again."


class VmStarted(RakshaError):
    code = "vm_started"
    message = "VM {vm} was started while its disks were read; what was read is discarded."
    hint = "Run the backup again: it will be captured running."
    retryable = True


class DiskReadFailed(RakshaError):
    code = "disk_read_failed"
    message = "Disk {disk} of VM {vm} could not be read at offset {offset}: {detail}."
    hint = "The disk below the VM is damaged; nothing was stored in its place."


class ChainUnexpected(NeedsAttention):
    code = "chain_unexpected"
    message = "The chain of {vm}:{disk} is not what it should be after {operation}: {detail}."
    hint = "The VM runs and every file is in place. Compare `virsh dumpxml {vm}` with `virsh dumpxml --inactive {vm}`."


class QemuOrphaned(NeedsAttention):
    code = "orphan_qemu"
    message = "libvirt says that VM {vm} is shut off, but its QEMU (pid {pid}) is alive and has {files} open."
    hint = (
        "Do not start, define or delete it: a second QEMU would destroy its disks. Shut the guest down from inside, or "
        "end process {pid} if what the guest has not yet written may be lost; then run `raksha local recover {vm}`."
    )


class MergeTorn(NeedsAttention):
    code = "merge_torn"
    message = (
        "QEMU of VM {vm} died while it merged {layer} of disk {disk}, and the VM was started although {base} lacks "
        "part of what that layer holds."
    )
    hint = (
        "Shut the VM off, then run raksha local recover: it puts the layer back into the chain. Check the file systems "
        "of the guest afterwards. Nothing was deleted."
    )


class StaleMirror(NeedsAttention):
    code = "stale_mirror"
    message = "Disk {disk} of VM {vm} has the remains of a block job that is no more; libvirt may not know its file."
    hint = (
        "The VM runs on, but nothing can be done to this disk until it is powered off and started again (a reboot "
        "inside is not enough). Before that let its definition name the file that the guest writes to, or what was "
        "written since is lost: see `stale_mirror` in docs/operations.md. QEMU has open: {files}."
    )


class DefinitionsDisagree(NeedsAttention):
    code = "definitions_disagree"
    message = "Disk {disk} of VM {vm}: {detail}."
    hint = (
        "Every file is in place. While the VM runs it has {live}; its next start would take {inactive}. "
        "Make the definition name the one that is right (`virsh edit {vm}`), then run `raksha local recover {vm}`."
    )


class VmGone(NeedsAttention):
    code = "vm_gone"
    message = "There is no VM {vm} at {uri} any more, but overlays of Raksha are left of it: {files}."
    hint = (
        "Was it migrated, or is another --connect meant? If its disks are gone as well, delete the overlays; if they "
        "are kept, they are not whole without them: see `vm_gone` in docs/operations.md."
    )


class RecoveryUnsettled(NeedsAttention):
    code = "recovery_unsettled"
    message = "VM {vm} does not come to rest: after {rounds} attempts there is still something to do ({detail})."
    hint = "Is another program changing its disks? `raksha local recover {vm} --dry-run` shows what is seen."


class OverlaySpaceLow(RakshaError):
    code = "overlay_space_low"
    message = "{path} ran out of space while VM {vm} was backed up: {detail}."
    hint = "Free space, or choose another directory with --overlay-dir. The next backup compares the whole disk."


class HookForeign(Refused):
    code = "hook_foreign"
    message = "{path} is not of Raksha; it was left as it is."
    hint = "Move it away, or call Raksha's hook from it: {command}."


# -- restore targets --------------------------------------------------------------------------------


class TargetExists(Refused):
    code = "target_exists"
    message = "{target} exists already; it was not overwritten."
    hint = "Choose another name or directory."


class TargetUnusable(Refused):
    code = "target_unusable"
    message = "{target} cannot take the restore: {detail}."


class NoSpaceForRestore(Refused):
    code = "no_space_for_restore"
    message = "{target} has {free} bytes free; the restore writes up to {wanted}."
    hint = "Free space, or choose another place. Nothing was written."


class NoMemoryForTest(Refused):
    code = "no_memory_for_test"
    message = "This host has {free} bytes of memory to spare; to boot the VM for a test takes {wanted}."
    hint = "Nothing was started. `[agent] test_restore_memory` bounds what such a VM gets."


class TargetFailed(RakshaError):
    code = "target_failed"
    message = "{target} could not be written: {detail}."
    hint = "Nothing was left behind. Is the disk below it full or damaged?"


class DeviceHalfWritten(NeedsAttention):
    code = "device_half_written"
    message = "{target} is half-written, and what it held before is gone: {detail}"
    hint = "Do not use {target} as it is. Run the restore again to write it anew."


class DiskLost(Damaged):
    code = "disk_lost"
    message = "Disk {disk} of VM {vm} cannot be restored from {run}: {detail}"
    hint = "Nothing was left behind. `raksha local verify --data` tells which restore points are whole."


class ImageToolFailed(RakshaError):
    code = "image_tool_failed"
    message = "`{command}` failed: {detail}."


# -- identity in a cloud -----------------------------------------------------------------------------


class TrustRefused(Refused):
    code = "trust_refused"
    message = "Keystone lets this token delegate nothing: {detail}."
    hint = (
        "A job acts for its owner by a trust, which needs the role `member` in the project and a login with a "
        "password or a token: application credentials cannot make trusts."
    )


class TargetTokenRefused(Refused):
    code = "target_token_refused"
    message = "The token for the target project cannot be used: {detail}."
    hint = (
        "X-Raksha-Target-Token has to be a token that stands, of the user whose the request is, scoped to the project "
        "that `target.project` names, with the role `member` there, and not of a restricted application credential."
    )


class TrustBroken(Refused):
    code = "trust_broken"
    message = "The trust that the job acts by does not work any more: {detail}."
    hint = "Its owner left the project, or the trust was removed. Any member of the project can take the job over."


class IdentityUnavailable(RakshaError):
    code = "identity_unavailable"
    message = "Keystone did not do what it was asked: {detail}."
    hint = "Nothing was changed. Check [trustee] and [keystone_authtoken], and whether Keystone runs."
    retryable = True


class CloudRefused(Refused):
    code = "cloud_refused"
    message = "The service {service} of the cloud refused: {detail}."
    hint = "Nothing was left half-made. What is missing may be a quota, a flavor, a network or a right of the project."


class CloudMissing(NotFound):
    code = "cloud_missing"
    message = "The service {service} of the cloud does not have it: {detail}."


class CloudUnavailable(RakshaError):
    code = "cloud_unavailable"
    message = "The service {service} of the cloud did not do what it was asked: {detail}."
    hint = "Try again; if it stays so, its operator must look."
    retryable = True


class VolumeNotAttachable(Refused):
    code = "volume_not_attachable"
    message = "Volume {volume} cannot be attached to the host of this agent: {detail}."
    hint = "Another host may be able to; without that its data goes through an image."


class VolumeInUse(Refused):
    code = "volume_in_use"
    message = "Volume {volume} is in use, and nobody has said that it may be captured all the same."
    hint = "Say `force`: its snapshot is what a power cut would leave."


class VolumeUnsupported(Refused):
    code = "volume_unsupported"
    message = "Volume {volume} cannot be captured: {detail}."


class VolumeBusy(Refused):
    code = "volume_busy"
    message = "Volume {volume} cannot be captured while it is {status}."
    hint = "Try again when it is available or in use."
    retryable = True


class StorageUnusable(RakshaError):
    code = "storage_unusable"
    message = "Volume {volume} could not be reached from this host: {detail}."
    hint = "The agent's host needs what Nova's hosts need for volumes of this kind."
    retryable = True


class VolumeHeld(NeedsAttention):
    code = "volume_held"
    message = "Volume {volume} is half-written, and attached to host {host} still, whose agent may be writing to it."
    hint = "When that agent is there again, or surely gone, delete the volume's attachment, and run the restore again."


class TooManyServers(Refused):
    code = "too_many_servers"
    message = "The project has more than {limit} servers; they are not listed."
    hint = "Ask for one by its id."


# -- the service's database -------------------------------------------------------------------------


class DatabaseUnavailable(RakshaError):
    code = "database_unavailable"
    message = "The database did not answer: {detail}."
    hint = "Nothing was changed. Check the address in [database] connection, and whether the server runs."
    retryable = True


class CommitUnknown(RakshaError):
    code = "commit_unknown"
    message = "The connection to the database was lost while it was told to commit: {detail}."
    hint = "What was done may or may not be there: look before it is done again."


class DatabaseBusy(RakshaError):
    code = "database_busy"
    message = "The database gave up a transaction {attempts} times: {detail}."
    hint = "Others were always first. Nothing was changed; try again later."
    retryable = True


class SchemaWrong(Refused):
    code = "schema_wrong"
    message = "The database has schema {found}; this Raksha needs {wanted}."
    hint = "Run `raksha-manage db upgrade`, or use the Raksha that the database belongs to."


class RowNotFound(NotFound):
    code = "not_found"
    message = "There is no {noun} {id}."


class StateConflict(Refused):
    code = "state_conflict"
    message = "The {noun} {id} is {found}; only from {wanted} can it become {to}."


class EpochStale(Refused):
    code = "epoch_stale"
    message = "The {noun} {id} has been taken over: its epoch is {found}, not {given}."


class NameTaken(Refused):
    code = "name_taken"
    message = "There is a {noun} {name} already."


class StillNeeded(Refused):
    code = "still_needed"
    message = "The {noun} {id} is {found}, and cannot be had: {detail}."
    retryable = True


class ChangedMeanwhile(Refused):
    code = "changed_meanwhile"
    message = "The {noun} {id} was changed meanwhile: it is at version {found}, not {given}."
    hint = "Read it again and repeat the change."


class MarkerUnknown(Refused):
    code = "marker_unknown"
    message = "The marker {marker} is not in this list."
    exit_code = 2


class SortKeyUnknown(Refused):
    code = "sort_key_unknown"
    message = "This list cannot be sorted by {key!r}, only by {known}."
    exit_code = 2


class KeyReused(Refused):
    code = "idempotency_key_reused"
    message = "The idempotency key {key!r} was used for another request."


class RequestUnderWay(Refused):
    code = "request_under_way"
    message = "A request with the idempotency key {key!r} is still at work."
    retryable = True


class ResultInvalid(Refused):
    code = "result_invalid"
    message = "What the agent of host {host} says about VM {vm} is not what was asked for: {detail}."
    retryable = True


class DatabaseBehind(Refused):
    code = "database_behind"
    message = "The vault {url} has commit {number}, of run {backupjobrun}, which the database does not know."
    hint = (
        "Was the database restored from an older dump? Nothing is committed or collected there until that is mended: "
        "`raksha-manage vault import` brings back what it lacks."
    )


# -- between processes --------------------------------------------------------------------------------


class BusUnavailable(RakshaError):
    code = "bus_unavailable"
    message = "{verb} could not be asked over the message bus: {detail}."
    hint = "It is asked again by itself; if it lasts, look at the broker."
    retryable = True


class ServiceRunning(Refused):
    code = "service_running"
    message = "Another `raksha serve` works with {path} (pid {pid})."
    hint = "End it first, or give this one another --state-dir."


class ServiceEnded(RakshaError):
    code = "service_ended"
    message = "The service ended, as its {parts} ended without being told to."
    hint = "The log says why. Nothing is lost: start it again."


class GroupFailed(RakshaError):
    code = "group_failed"
    message = "VM {vm} was not captured with the others of its run: {detail}."
    retryable = True


class BusFailed(RakshaError):
    code = "bus_failed"
    message = "The message bus cannot be used: {detail}."


def by_code(code: str, family: type[RakshaError] = RakshaError) -> type[RakshaError] | None:
    """The class of a machine name."""
    for kind in family.__subclasses__():
        found = kind if kind.code == code else by_code(code, kind)
        if found is not None:
            return found
    return None


# -- the REST API -----------------------------------------------------------------------------------


class NotAuthenticated(Refused):
    """`challenge`: what the server sends as WWW-Authenticate."""

    code = "not_authenticated"
    message = "This needs valid credentials."


class NotAllowed(Refused):
    code = "not_allowed"
    message = "Your roles do not allow this: {rule}."


class NotScoped(Refused):
    code = "not_scoped"
    message = "The token is not scoped to a project."


class NothingHere(NotFound):
    """Also said of what belongs to others: it must not be told apart from what does not exist."""

    code = "not_found"
    message = "There is nothing at this address."


class RequestInvalid(Refused):
    """`problems`: pairs of where (a path of fields, a header, a parameter) and what is wrong there."""

    code = "request_invalid"
    message = "The request is not valid."
    exit_code = 2


class VersionNotServed(Refused):
    code = "version_not_served"
    message = "Version {version} of the API is not served, only {minimum} to {maximum}."


class ConditionMissing(Refused):
    code = "condition_missing"
    message = "This change needs If-Match with the ETag that was read."


class ConditionFailed(Refused):
    code = "condition_failed"
    message = "The {noun} {id} is not what If-Match says: it was changed meanwhile."


class LimitExceeded(Refused):
    code = "limit_exceeded"
    message = "The limit of {what} is {limit}; with this it would be {wanted}."


class Protected(Refused):
    code = "protected"
    message = "The backup job run {id} is protected: it is deleted only after `protected` was set to false."


class HasRestorePoints(Refused):
    code = "has_restore_points"
    message = (
        "The backup job {id} has {count} restore points. They are deleted with it only if the request says "
        "with_runs=true."
    )


# -- schedules and retention ------------------------------------------------------------------------


class ZoneUnknown(Refused):
    code = "zone_unknown"
    message = "There is no time zone {zone!r}."
    hint = "Zones have the names of the IANA database, spelled exactly, such as {near}."
    exit_code = 2


class BadCron(Refused):
    code = "bad_cron"
    message = "{cron!r} is no cron expression: {detail}."
    hint = "Five fields: minute, hour, day of month, month, day of week (0, 7: Sunday); for example 30 22 * * 1-5."
    exit_code = 2


class ScheduleInvalid(Refused):
    code = "schedule_invalid"
    message = "The schedule's {field} cannot be used: {detail}."
    hint = "docs/schedules.md tells what a schedule can say."
    exit_code = 2


class ScheduleNeverFires(Refused):
    code = "schedule_never_fires"
    message = "The schedule never fires: {detail}."
    hint = "Change it, or leave it out: a job without a schedule runs when it is told to."
    exit_code = 2


class ScheduleTooOften(Refused):
    code = "schedule_too_often"
    message = "The schedule fires twice within {seconds} seconds ({at}); at least {least} must lie between two fires."
    hint = "Choose a longer interval, or ask the operator for a shorter least interval."
    exit_code = 2


class RetentionInvalid(Refused):
    code = "retention_invalid"
    message = "The retention's {field} cannot be used: {detail}."
    hint = "Say how many to keep: the last, hourly, daily, weekly, monthly, yearly; at least one of them."
    exit_code = 2
