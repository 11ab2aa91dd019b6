"""The platform: it knows contracts, values and proxies, and no service."""

import os

# gRPC's own handlers of fork() crash one child in fifty before it becomes the program that was to be started: Envoy
# would not judge an edit, but die of it. Nobody here forks without exec. gRPC reads this when it is loaded.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
