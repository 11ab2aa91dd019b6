"""What the edge itself answers; all else at the edge is Envoy's work, compiled by `mesh.xds.edge`."""
