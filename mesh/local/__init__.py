"""The laptop runner: processes, embedded PostgreSQL, and the order in which the mesh comes up and goes down."""
