"""Jobs: work that a service does later, or for longer than a call, kept in its own database.

`@job(Message)` marks the method that does the work; `enqueue` asks for it in the caller's transaction; `work`
around `serve` does what is due. `begin` is `enqueue` for a user, who follows it as an
operation; `Operations` serves those.
"""

from mesh.runtime.backoff import Backoff
from mesh.runtime.jobs.kinds import job
from mesh.runtime.jobs.operations import Operations
from mesh.runtime.jobs.queue import begin, enqueue
from mesh.runtime.jobs.running import Cancelled, Job, Superseded
from mesh.runtime.jobs.workers import work

__all__ = ["Backoff", "Cancelled", "Job", "Operations", "Superseded", "begin", "enqueue", "job", "work"]
