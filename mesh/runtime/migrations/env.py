"""Alembic's environment for every service: runs on the connection that `database` holds the lock with."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
