"""The platform: it knows contracts, values and proxies, and no service."""

import os

# gRPC's own handlers run in each child between fork and exec, and crash some when there are many connections: Envoy
# would then not judge an edit, but die of it. No program of the mesh uses gRPC in a child before it executes another.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # is read when grpc is loaded
