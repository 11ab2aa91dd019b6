"""The edge: what the outside world may reach, and how.

REST/JSON, gRPC and gRPC-Web come in by one listener. Only methods with a REST binding and public or user access are
there at all; what the edge answers by itself has the same shape as what an application answers.
"""

from mesh.xds.edge.listener import edge_listener
from mesh.xds.edge.routes import edge_routes

__all__ = ["edge_listener", "edge_routes"]
