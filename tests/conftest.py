"""One mesh for all the stories that share one: the first start imports the foods, which takes a while."""

import pytest

from tests.e2e.harness import Mesh, running


@pytest.fixture(scope="session")
def mesh(tmp_path_factory):
    """The whole mesh as `mesh up` gives it, with its values in force; a story that changes them puts them back."""
    with running(Mesh(tmp_path_factory.mktemp("mesh"))) as up:
        yield up
