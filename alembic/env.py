"""Run by alembic for every command. `raksha.db.migrate` gives the connection; offline (`--sql`) is not offered."""

from alembic import context

from raksha.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    # ALTER of SQLite is little: tables are copied where it needs to be
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
