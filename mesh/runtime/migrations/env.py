"""Alembic's environment for every service: runs on the connection that `database` holds the lock with."""

from alembic import context

given = context.config.attributes
context.configure(connection=given["connection"], version_table=given["table"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
