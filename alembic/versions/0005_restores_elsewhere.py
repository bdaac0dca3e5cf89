"""Restores into other projects have a trust of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("restores", sa.Column("trust_id", sa.String(255)))
    op.create_index("ix_restores_trust_id", "restores", ["trust_id"])


def downgrade() -> None:
    op.drop_index("ix_restores_trust_id", "restores")
    with op.batch_alter_table("restores") as batch:
        batch.drop_column("trust_id")
