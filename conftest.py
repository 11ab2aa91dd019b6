"""How two workers share the tests out. Fixtures for every test are in `mesh.pytest`."""

from pathlib import PurePath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


class ByFolder(LoadScopeScheduling):
    """One worker takes a folder: a server that its tests share is started once. A file of `tests/` stands alone."""

    def _split_scope(self, nodeid: str) -> str:
        path = PurePath(nodeid.partition("::")[0])
        return str(path if path.parent.name == path.parts[0] == "tests" else path.parent)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFolder:
    """The hook of pytest-xdist."""
    return ByFolder(config, log)
