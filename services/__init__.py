"""One folder a service; they import `mesh.runtime` and the generated contracts, never each other."""
