"""Jobs that were taken over remember the trusts that are to be ended."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Json = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    op.add_column("backupjobs", sa.Column("former_trusts", Json, nullable=True))
    op.execute("UPDATE backupjobs SET former_trusts = '[]'")
    with op.batch_alter_table("backupjobs") as table:
        table.alter_column("former_trusts", existing_type=Json, nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("backupjobs") as table:
        table.drop_column("former_trusts")
