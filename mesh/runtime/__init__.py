"""All that a service may import: serve its methods, call others, keep state, fail well.

A service is `serve(FoodService(store))` and nothing left to remember; CONTRIBUTING has the three edits that add one.
"""

from mesh.runtime import auth, errors, notify, pages
from mesh.runtime.app import run
from mesh.runtime.client import call
from mesh.runtime.db import Database, database
from mesh.runtime.environment import environment
from mesh.runtime.server import Context, serve

__all__ = ["Context", "Database", "auth", "call", "database", "errors", "notify", "pages", "run", "serve", "settings"]
