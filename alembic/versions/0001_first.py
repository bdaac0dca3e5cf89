"""The first schema of the service."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Json = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")
#: strings are compared as bytes, on MariaDB too
MARIADB = {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}
OPTIONS: dict[str, Any] = {f"{name}_{key}": value for name in ("mysql", "mariadb") for key, value in MARIADB.items()}
TABLES = [
    "idempotency_keys",
    "project_limits",
    "reservations",
    "services",
    "vault_services",
    "backupjobs",
    "seen_vms",
    "vaults",
    "backupjob_vms",
    "backupjobruns",
    "tombstones",
    "backupjobrun_vms",
    "barriers",
    "restores",
    "backupjobrun_vm_resources",
    "tasks",
    "barrier_members",
    "vm_resource_backups",
    "pins",
]


def create_table(name: str, *columns: Any) -> None:
    op.create_table(name, *columns, **OPTIONS)


def upgrade() -> None:
    create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("headers", Json),
        sa.Column("body", Json),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "idempotency_key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    create_table(
        "project_limits",
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "name", name="pk_project_limits"),
    )
    create_table(
        "reservations",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("holder_id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "slot", name="pk_reservations"),
    )
    op.create_index("ix_reservations_holder_id", "reservations", ["holder_id"])
    create_table(
        "services",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("zone", sa.String(255)),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("state_reason", sa.String(255)),
        sa.Column("instance", sa.String(36), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("capabilities", Json, nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_services"),
        sa.UniqueConstraint("kind", "name", name="uq_services_kind_name"),
    )
    op.create_index("ix_services_kind_heartbeat_at", "services", ["kind", "heartbeat_at"])
    op.create_index("ix_services_kind_host", "services", ["kind", "host"])
    create_table(
        "vault_services",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("url", sa.String(1024), nullable=False),
        sa.Column("project_id", sa.String(255)),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("max_runs", sa.Integer()),
        sa.Column("settings", Json, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vault_services"),
        sa.UniqueConstraint("name", name="uq_vault_services_name"),
    )
    create_table(
        "backupjobs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("state_reason", Json),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("schedule", Json),
        sa.Column("next_run_at", sa.BigInteger()),
        sa.Column("fired_upto", sa.BigInteger()),
        sa.Column("missed_runs", sa.BigInteger(), nullable=False),
        sa.Column("last_missed_at", sa.BigInteger()),
        sa.Column("last_missed_reason", Json),
        sa.Column("catch_up", sa.String(16), nullable=False),
        sa.Column("full_every", sa.Integer()),
        sa.Column("full_schedule", Json),
        sa.Column("next_full_at", sa.BigInteger()),
        sa.Column("runs_since_full", sa.BigInteger(), nullable=False),
        sa.Column("quiesce", sa.String(32), nullable=False),
        sa.Column("engine", sa.String(16), nullable=False),
        sa.Column("consistency_group", sa.Boolean(), nullable=False),
        sa.Column("on_vm_failure", sa.String(16), nullable=False),
        sa.Column("retention", Json),
        sa.Column("retry_policy", Json),
        sa.Column("max_parallel_disks", sa.Integer()),
        sa.Column("bandwidth_limit", sa.BigInteger()),
        sa.Column("placement", Json),
        sa.Column("hints", Json),
        sa.Column("vm_selector", Json),
        sa.Column("vault_service_id", sa.String(36)),
        sa.Column("trust_id", sa.String(255)),
        sa.ForeignKeyConstraint(
            ["vault_service_id"], ["vault_services.id"], name="fk_backupjobs_vault_service_id", ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_backupjobs"),
    )
    op.create_index("ix_backupjobs_project_id_created_at_id", "backupjobs", ["project_id", "created_at", "id"])
    op.create_index("ix_backupjobs_project_id_name_id", "backupjobs", ["project_id", "name", "id"])
    op.create_index("ix_backupjobs_state_next_run_at", "backupjobs", ["state", "next_run_at"])
    create_table(
        "seen_vms",
        sa.Column("service_id", sa.String(36), nullable=False),
        sa.Column("vm_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("project_id", sa.String(255)),
        sa.Column("power", sa.String(32), nullable=False),
        sa.Column("tags", Json, nullable=False),
        sa.Column("hints", Json, nullable=False),
        sa.Column("disks", Json, nullable=False),
        sa.Column("refusal", Json),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["service_id"], ["services.id"], name="fk_seen_vms_service_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("service_id", "vm_id", name="pk_seen_vms"),
    )
    op.create_index("ix_seen_vms_project_id_name_vm_id", "seen_vms", ["project_id", "name", "vm_id"])
    op.create_index("ix_seen_vms_vm_id_seen_at", "seen_vms", ["vm_id", "seen_at"])
    create_table(
        "vaults",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("vault_service_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("url", sa.String(1024), nullable=False),
        sa.Column("vault_uuid", sa.String(36)),
        sa.Column("last_commit", sa.BigInteger(), nullable=False),
        sa.Column("collector_id", sa.String(36)),
        sa.Column("collector_until", sa.BigInteger(), nullable=False),
        sa.Column("collected_at", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vault_service_id"], ["vault_services.id"], name="fk_vaults_vault_service_id", ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_vaults"),
        sa.UniqueConstraint("vault_service_id", "project_id", name="uq_vaults_vault_service_id_project_id"),
    )
    create_table(
        "backupjob_vms",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("backupjob_id", sa.String(36), nullable=False),
        sa.Column("vm_id", sa.String(36), nullable=False),
        sa.Column("excluded_disks", Json, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backupjob_id"], ["backupjobs.id"], name="fk_backupjob_vms_backupjob_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_backupjob_vms"),
        sa.UniqueConstraint("backupjob_id", "vm_id", name="uq_backupjob_vms_backupjob_id_vm_id"),
    )
    op.create_index("ix_backupjob_vms_vm_id", "backupjob_vms", ["vm_id"])
    create_table(
        "backupjobruns",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("backupjob_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("protected", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.String(36)),
        sa.Column("lease_until", sa.BigInteger()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("triggered_by", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("scheduled_at", sa.BigInteger()),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("queued_reason", Json),
        sa.Column("retry_of", sa.String(36)),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(255)),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("taken_at", sa.BigInteger()),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("cancel_requested_at", sa.BigInteger()),
        sa.Column("error", Json),
        sa.Column("warnings", Json, nullable=False),
        sa.Column("consistency", sa.String(32)),
        sa.Column("group_consistent", sa.Boolean()),
        sa.Column("skew_seconds", sa.Double()),
        sa.Column("skew_error_seconds", sa.Double()),
        sa.Column("frozen_seconds", sa.Double()),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_sent", sa.BigInteger(), nullable=False),
        sa.Column("bytes_stored", sa.BigInteger(), nullable=False),
        sa.Column("vault_id", sa.String(36)),
        sa.Column("commit_number", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["backupjob_id"], ["backupjobs.id"], name="fk_backupjobruns_backupjob_id", ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["retry_of"], ["backupjobruns.id"], name="fk_backupjobruns_retry_of", ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["vault_id"], ["vaults.id"], name="fk_backupjobruns_vault_id", ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("id", name="pk_backupjobruns"),
        sa.UniqueConstraint("backupjob_id", "scheduled_at", name="uq_backupjobruns_backupjob_id_scheduled_at"),
        sa.UniqueConstraint("retry_of", name="uq_backupjobruns_retry_of"),
        sa.UniqueConstraint("vault_id", "commit_number", name="uq_backupjobruns_vault_id_commit_number"),
    )
    op.create_index(
        "ix_backupjobruns_backupjob_id_created_at_id", "backupjobruns", ["backupjob_id", "created_at", "id"]
    )
    op.create_index("ix_backupjobruns_project_id_created_at_id", "backupjobruns", ["project_id", "created_at", "id"])
    op.create_index("ix_backupjobruns_project_id_state", "backupjobruns", ["project_id", "state"])
    op.create_index("ix_backupjobruns_state_lease_until", "backupjobruns", ["state", "lease_until"])
    op.create_index("ix_backupjobruns_state_not_before", "backupjobruns", ["state", "not_before"])
    create_table(
        "tombstones",
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("vault_id", sa.String(36), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["vault_id"], ["vaults.id"], name="fk_tombstones_vault_id", ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("task_id", name="pk_tombstones"),
    )
    op.create_index("ix_tombstones_vault_id_created_at", "tombstones", ["vault_id", "created_at"])
    create_table(
        "backupjobrun_vms",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("backupjobrun_id", sa.String(36), nullable=False),
        sa.Column("vm_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("host", sa.String(255)),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("excluded_disks", Json, nullable=False),
        sa.Column("engine", sa.String(16)),
        sa.Column("power", sa.String(32)),
        sa.Column("consistency", sa.String(32)),
        sa.Column("taken_at", sa.BigInteger()),
        sa.Column("frozen_seconds", sa.Double()),
        sa.Column("error", Json),
        sa.Column("warnings", Json, nullable=False),
        sa.ForeignKeyConstraint(
            ["backupjobrun_id"], ["backupjobruns.id"], name="fk_backupjobrun_vms_backupjobrun_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_backupjobrun_vms"),
        sa.UniqueConstraint("backupjobrun_id", "vm_id", name="uq_backupjobrun_vms_backupjobrun_id_vm_id"),
    )
    op.create_index("ix_backupjobrun_vms_vm_id_taken_at", "backupjobrun_vms", ["vm_id", "taken_at"])
    create_table(
        "barriers",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("backupjobrun_id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("deadline_at", sa.BigInteger(), nullable=False),
        sa.Column("reports", sa.BigInteger(), nullable=False),
        sa.Column("error", Json),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backupjobrun_id"], ["backupjobruns.id"], name="fk_barriers_backupjobrun_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_barriers"),
        sa.UniqueConstraint("backupjobrun_id", name="uq_barriers_backupjobrun_id"),
    )
    op.create_index("ix_barriers_state_deadline_at", "barriers", ["state", "deadline_at"])
    create_table(
        "restores",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("backupjobrun_id", sa.String(36)),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("target", Json, nullable=False),
        sa.Column("made", Json, nullable=False),
        sa.Column("result", Json),
        sa.Column("error", Json),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("cancel_requested_at", sa.BigInteger()),
        sa.Column("request_id", sa.String(255)),
        sa.ForeignKeyConstraint(
            ["backupjobrun_id"], ["backupjobruns.id"], name="fk_restores_backupjobrun_id", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_restores"),
    )
    op.create_index("ix_restores_backupjobrun_id", "restores", ["backupjobrun_id"])
    op.create_index("ix_restores_project_id_created_at_id", "restores", ["project_id", "created_at", "id"])
    op.create_index("ix_restores_state", "restores", ["state"])
    create_table(
        "backupjobrun_vm_resources",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("backupjobrun_vm_id", sa.String(36), nullable=False),
        sa.Column("resource", sa.String(255), nullable=False),
        sa.Column("source", sa.String(1024)),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(32)),
        sa.Column("mode", sa.String(32)),
        sa.Column("reason", sa.String(32)),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_sent", sa.BigInteger(), nullable=False),
        sa.Column("facts", Json, nullable=False),
        sa.ForeignKeyConstraint(
            ["backupjobrun_vm_id"],
            ["backupjobrun_vms.id"],
            name="fk_backupjobrun_vm_resources_backupjobrun_vm_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_backupjobrun_vm_resources"),
        sa.UniqueConstraint(
            "backupjobrun_vm_id", "resource", name="uq_backupjobrun_vm_resources_backupjobrun_vm_id_resource"
        ),
    )
    create_table(
        "tasks",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("backupjobrun_id", sa.String(36)),
        sa.Column("restore_id", sa.String(36)),
        sa.Column("vault_id", sa.String(36)),
        sa.Column("vm_id", sa.String(36)),
        sa.Column("host", sa.String(255)),
        sa.Column("placement", Json),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("service_id", sa.String(36)),
        sa.Column("lease_until", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("cancel_requested_at", sa.BigInteger()),
        sa.Column("work_order", Json, nullable=False),
        sa.Column("result", Json),
        sa.Column("error", Json),
        sa.Column("report_number", sa.BigInteger(), nullable=False),
        sa.Column("progress", Json),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("finished_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["backupjobrun_id"], ["backupjobruns.id"], name="fk_tasks_backupjobrun_id", ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["restore_id"], ["restores.id"], name="fk_tasks_restore_id", ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(["service_id"], ["services.id"], name="fk_tasks_service_id", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["vault_id"], ["vaults.id"], name="fk_tasks_vault_id", ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
    )
    op.create_index("ix_tasks_backupjobrun_id", "tasks", ["backupjobrun_id"])
    op.create_index("ix_tasks_restore_id", "tasks", ["restore_id"])
    op.create_index("ix_tasks_service_id_state", "tasks", ["service_id", "state"])
    op.create_index("ix_tasks_state_host_priority_created_at", "tasks", ["state", "host", "priority", "created_at"])
    op.create_index("ix_tasks_state_lease_until", "tasks", ["state", "lease_until"])
    op.create_index("ix_tasks_vault_id_state", "tasks", ["vault_id", "state"])
    create_table(
        "barrier_members",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("barrier_id", sa.String(36), nullable=False),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("vm_id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("frozen_at", sa.BigInteger()),
        sa.Column("captured_at", sa.BigInteger()),
        sa.Column("thawed_at", sa.BigInteger()),
        sa.Column("clock_error_seconds", sa.Double()),
        sa.Column("error", Json),
        sa.ForeignKeyConstraint(
            ["barrier_id"], ["barriers.id"], name="fk_barrier_members_barrier_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_barrier_members_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_barrier_members"),
        sa.UniqueConstraint("barrier_id", "vm_id", name="uq_barrier_members_barrier_id_vm_id"),
    )
    op.create_index("ix_barrier_members_task_id", "barrier_members", ["task_id"])
    create_table(
        "vm_resource_backups",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("backupjobrun_vm_resource_id", sa.String(36), nullable=False),
        sa.Column("vm_resource_backup_backing_id", sa.String(36)),
        sa.Column("top", sa.Boolean(), nullable=False),
        sa.Column("vault_service_id", sa.String(36), nullable=False),
        sa.Column("vault_service_url", sa.String(1024), nullable=False),
        sa.Column("vault_service_metadata", Json, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("vault_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("backupjob_id", sa.String(36), nullable=False),
        sa.Column("backupjobrun_id", sa.String(36), nullable=False),
        sa.Column("vm_id", sa.String(36), nullable=False),
        sa.Column("resource", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("cluster_size", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(36)),
        sa.Column("map_digest", sa.String(64)),
        sa.Column("map_size", sa.BigInteger(), nullable=False),
        sa.Column("other_map_digest", sa.String(64)),
        sa.Column("base_image", sa.String(255)),
        sa.Column("bytes_read", sa.BigInteger(), nullable=False),
        sa.Column("bytes_data", sa.BigInteger(), nullable=False),
        sa.Column("bytes_sent", sa.BigInteger(), nullable=False),
        sa.Column("bytes_stored", sa.BigInteger(), nullable=False),
        sa.Column("image_size", sa.BigInteger(), nullable=False),
        sa.Column("pin_count", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("taken_at", sa.BigInteger()),
        sa.Column("verified_at", sa.BigInteger()),
        sa.Column("trashed_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["backupjobrun_vm_resource_id"],
            ["backupjobrun_vm_resources.id"],
            name="fk_vm_resource_backups_backupjobrun_vm_resource_id",
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["vault_id"], ["vaults.id"], name="fk_vm_resource_backups_vault_id", ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["vault_service_id"],
            ["vault_services.id"],
            name="fk_vm_resource_backups_vault_service_id",
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["vm_resource_backup_backing_id"],
            ["vm_resource_backups.id"],
            name="fk_vm_resource_backups_vm_resource_backup_backing_id",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_vm_resource_backups"),
        sa.UniqueConstraint("backupjobrun_vm_resource_id", name="uq_vm_resource_backups_backupjobrun_vm_resource_id"),
    )
    op.create_index("ix_vm_resource_backups_backupjobrun_id", "vm_resource_backups", ["backupjobrun_id"])
    op.create_index("ix_vm_resource_backups_disk", "vm_resource_backups", ["vm_id", "resource", "created_at"])
    op.create_index(
        "ix_vm_resource_backups_project_id_status_bytes_stored",
        "vm_resource_backups",
        ["project_id", "status", "bytes_stored"],
    )
    op.create_index(
        "ix_vm_resource_backups_vault_id_base_image_created_at",
        "vm_resource_backups",
        ["vault_id", "base_image", "created_at"],
    )
    op.create_index("ix_vm_resource_backups_vault_id_status", "vm_resource_backups", ["vault_id", "status"])
    op.create_index(
        "ix_vm_resource_backups_vm_resource_backup_backing_id", "vm_resource_backups", ["vm_resource_backup_backing_id"]
    )
    create_table(
        "pins",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("vm_resource_backup_id", sa.String(36), nullable=False),
        sa.Column("holder_kind", sa.String(32), nullable=False),
        sa.Column("holder_id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_resource_backup_id"],
            ["vm_resource_backups.id"],
            name="fk_pins_vm_resource_backup_id",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_pins"),
        sa.UniqueConstraint("vm_resource_backup_id", "holder_id", name="uq_pins_vm_resource_backup_id_holder_id"),
    )
    op.create_index("ix_pins_holder_id", "pins", ["holder_id"])


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
