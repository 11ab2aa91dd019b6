"""All that a service may import: serve its methods, call others, keep state, fail well.

A service is `serve(FoodService(store))` and nothing left to remember; CONTRIBUTING has the three edits that add one.
"""

from mesh.runtime import auth, cache, clock, errors, etags, masks, notify, pages
from mesh.runtime.app import run
from mesh.runtime.client import call
from mesh.runtime.db import Database, database
from mesh.runtime.environment import environment
from mesh.runtime.handlers import Context
from mesh.runtime.pools import blocking, computing
from mesh.runtime.server import serve
from mesh.runtime.settings import setting

__all__ = [
    "Context",
    "Database",
    "auth",
    "blocking",
    "cache",
    "call",
    "clock",
    "computing",
    "database",
    "environment",
    "errors",
    "etags",
    "masks",
    "notify",
    "pages",
    "run",
    "serve",
    "setting",
]
