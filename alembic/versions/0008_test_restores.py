"""Test restores: verifications that boot the VMs of a restore point, by schedules of jobs; and what they proved."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

Json = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")

COLUMNS = {
    "verifications": {"marker": sa.String(255), "timeout": sa.Integer()},
    "backupjobs": {
        "test_every": sa.Integer(),
        "test_marker": sa.String(255),
        "test_timeout": sa.Integer(),
        "proven_restorable_at": sa.BigInteger(),
        "proven_run_id": sa.String(36),
    },
    "backupjobruns": {"proven_restorable_at": sa.BigInteger()},
    "backupjobrun_vms": {
        "proven_restorable_at": sa.BigInteger(),
        "proven_by": sa.String(32),
        "unproven_at": sa.BigInteger(),
        "unproven_reason": Json,
    },
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, kind in columns.items():
            op.add_column(table, sa.Column(name, kind))
    # those that are there looked at data
    with op.batch_alter_table("verifications") as batch:
        batch.add_column(sa.Column("boot", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("vms", Json))
    op.execute("UPDATE verifications SET vms = '[]'")
    with op.batch_alter_table("verifications") as batch:
        batch.alter_column("boot", existing_type=sa.Boolean(), existing_nullable=False, server_default=None)
        batch.alter_column("vms", existing_type=Json, nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("verifications") as batch:
        for name in ("boot", "vms"):
            batch.drop_column(name)
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table) as batch:
            for name in columns:
                batch.drop_column(name)
