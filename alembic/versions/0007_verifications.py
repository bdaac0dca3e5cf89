"""Verifications: somebody, or time, asks whether restore points still hold what was stored."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

Json = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")
OPTIONS = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def upgrade() -> None:
    op.create_table(
        "verifications",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("backupjob_id", sa.String(36), nullable=False),
        sa.Column("backupjobrun_id", sa.String(36)),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("data", sa.Boolean(), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("triggered_by", sa.String(32), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("copies", sa.BigInteger(), nullable=False),
        sa.Column("findings", Json, nullable=False),
        sa.Column("healed", Json, nullable=False),
        sa.Column("error", Json),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("cancel_requested_at", sa.BigInteger()),
        sa.Column("request_id", sa.String(255)),
        sa.PrimaryKeyConstraint("id", name="pk_verifications"),
        sa.ForeignKeyConstraint(
            ["backupjob_id"], ["backupjobs.id"], name="fk_verifications_backupjob_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["backupjobrun_id"], ["backupjobruns.id"], name="fk_verifications_backupjobrun_id", ondelete="CASCADE"
        ),
        **OPTIONS,
    )
    op.create_index("ix_verifications_project_id_created_at_id", "verifications", ["project_id", "created_at", "id"])
    for column in ("backupjob_id", "backupjobrun_id", "state"):
        op.create_index(f"ix_verifications_{column}", "verifications", [column])
    with op.batch_alter_table("tasks") as batch:
        batch.add_column(sa.Column("verification_id", sa.String(36)))
        batch.create_foreign_key(
            "fk_tasks_verification_id", "verifications", ["verification_id"], ["id"], ondelete="RESTRICT"
        )
    op.create_index("ix_tasks_verification_id", "tasks", ["verification_id"])
    op.add_column("backupjobruns", sa.Column("verified_at", sa.BigInteger()))


def downgrade() -> None:
    with op.batch_alter_table("backupjobruns") as batch:
        batch.drop_column("verified_at")
    with op.batch_alter_table("tasks") as batch:
        batch.drop_constraint("fk_tasks_verification_id", type_="foreignkey")
        batch.drop_index("ix_tasks_verification_id")
        batch.drop_column("verification_id")
    op.drop_table("verifications")
