"""Caches: values that were loaded before, in memory and between instances, cleared by events.

foods = Cache("foods", Food, whose="everybody", ttl=3600, cleared_by=[on(FoodsImported)])
...
return await foods.get(request.name, lambda: self._load(request.name))
"""

from mesh.runtime.cache.cache import Cache, caches
from mesh.runtime.cache.clearing import on
from mesh.runtime.cache.statistics import Statistics

__all__ = ["Cache", "Statistics", "caches", "on"]
