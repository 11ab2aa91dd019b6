"""A program that serves gRPC can start others."""

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parents[2]


async def start_many(socket: Path) -> set[int]:
    """The exit statuses of 250 processes started by a gRPC server that is called meanwhile."""
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:

        async def call() -> None:
            while True:
                try:
                    await channel.unary_unary("/no/Method")(b"")
                except grpc.aio.AioRpcError:
                    continue

        callers = [asyncio.create_task(call()) for _ in range(4)]
        statuses = {await (await asyncio.create_subprocess_exec("/bin/true")).wait() for _ in range(250)}
        for caller in callers:
            caller.cancel()
    await server.stop(0)
    return statuses


def test_a_grpc_server_under_load_starts_250_processes_and_none_crashes_before_it_begins(tmp_path: Path) -> None:
    program = "import mesh, uvloop, pathlib\nfrom mesh.tests.test_processes import start_many\n"
    program += f"print(uvloop.run(start_many(pathlib.Path({str(tmp_path / 'socket')!r}))))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "{0}", done.stdout + done.stderr[-2000:]
