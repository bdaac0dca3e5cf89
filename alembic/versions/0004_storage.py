"""Jobs name volumes, and say where disks are taken from; tasks of any agent remember what they leave in the cloud."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Json = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")
#: with what those that are there have: models say it themselves
SOURCE = {"nullable": False, "server_default": "hypervisor"}


def upgrade() -> None:
    op.add_column("backupjob_vms", sa.Column("source", sa.String(32), **SOURCE))
    op.add_column("backupjob_vms", sa.Column("force", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("backupjobrun_vms", sa.Column("source", sa.String(32), **SOURCE))
    op.add_column("tasks", sa.Column("needs", sa.String(32)))
    op.add_column("tasks", sa.Column("temporary", Json))
    op.add_column("tasks", sa.Column("clear_at", sa.BigInteger()))
    op.create_index("ix_tasks_clear_at", "tasks", ["clear_at"])
    op.add_column("backupjobs", sa.Column("clear_at", sa.BigInteger()))
    op.create_index("ix_backupjobs_clear_at", "backupjobs", ["clear_at"])


def downgrade() -> None:
    op.drop_index("ix_backupjobs_clear_at", "backupjobs")
    op.drop_index("ix_tasks_clear_at", "tasks")
    for table, columns in (
        ("backupjobs", ("clear_at",)),
        ("tasks", ("needs", "temporary", "clear_at")),
        ("backupjobrun_vms", ("source",)),
        ("backupjob_vms", ("source", "force")),
    ):
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column)
