"""The control plane's own API, for the verbs that ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub

from mesh.cli.failure import Exit, Failure

if TYPE_CHECKING:
    from nourish.mesh.v1.control_pb2_grpc import ControlServiceAsyncStub

    from mesh.local.paths import Paths


@asynccontextmanager
async def control_plane(paths: Paths) -> AsyncIterator[ControlServiceAsyncStub]:
    """A stub on the private socket; raises as `channel` does."""
    async with channel(paths) as opened:
        yield ControlServiceStub(opened)


@asynccontextmanager
async def channel(paths: Paths) -> AsyncIterator[grpc.aio.Channel]:
    """The private socket.

    Raises:
        Failure: nobody answers there, now or in the middle of a call. Traffic goes on without it.
    """
    async with grpc.aio.insecure_channel(f"unix:{paths.control_socket}") as opened:
        try:
            yield opened
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            hint = "is the mesh up? `mesh status`; why it ended: `mesh logs control`"
            raise Failure("the control plane does not answer", Exit.NOT_RUNNING, hint) from None
