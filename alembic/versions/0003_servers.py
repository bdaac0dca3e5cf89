"""A VM of a run remembers what its cloud said of it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("backupjobrun_vms", sa.Column("server", sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")))


def downgrade() -> None:
    with op.batch_alter_table("backupjobrun_vms") as table:
        table.drop_column("server")
