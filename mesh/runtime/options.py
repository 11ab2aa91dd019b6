"""What both ends of every gRPC connection of this process agree on: message sizes and keep-alive."""

from __future__ import annotations

from typing import Any

Options = tuple[tuple[str, Any], ...]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# A caller asks this often whether the other end lives, while calls run; the other end must permit it, or it hangs up.
PING_SECONDS, PING_ANSWER_SECONDS, PERMITTED_PING_SECONDS = 30, 10, 15

_BOTH: Options = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", PING_ANSWER_SECONDS * 1000),
)
SERVER: Options = (
    *_BOTH,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PERMITTED_PING_SECONDS * 1000),
    ("grpc.so_reuseport", 0),
)
CLIENT: Options = (
    *_BOTH,
    ("grpc.enable_retries", 0),  # one layer retries: the sidecar
    ("grpc.default_authority", "mesh"),
)
