"""What the tests with processes of their own share."""

import pytest

from mesh.runtime.tests.forking import forks


@pytest.fixture(scope="session")
def forker():
    """A process to fork others from."""
    with forks() as started:
        yield started
