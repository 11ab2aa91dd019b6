"""Sagas: a change of several services, step by step; if one refuses, what the others did is undone.

A saga is a job whose work is steps: `@saga(Message)` marks the method that lists them, `jobs.enqueue` or `jobs.begin`
starts one in the caller's transaction, `jobs.work` runs it. `undoing` is for the service that is called.
"""

from mesh.runtime.sagas.running import saga
from mesh.runtime.sagas.steps import Call, Step, step
from mesh.runtime.sagas.undoing import undoing

__all__ = ["Call", "Step", "saga", "step", "undoing"]
