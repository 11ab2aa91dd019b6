"""What an event and a job are part of, and what is counted of them, on a real NATS and a real PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest
from nourish.food.v1.food_pb2 import FoodsImported, GetFoodRequest

from mesh.runtime import auth, database, events, jobs
from mesh.runtime.events import subjects
from mesh.runtime.telemetry import metrics, traces

NAME = FoodsImported.DESCRIPTOR.full_name


class Later:
    """Fails at first, then works."""

    def __init__(self):
        self.seen = []

    def _once_more(self):
        self.seen.append(auth.current.get().headers[auth.TRACE_HEADER])
        if len(self.seen) == 1:
            raise LookupError("not yet")

    @events.subscribe(FoodsImported, group="later", backoff=events.Backoff("fixed", first=0.01, jitter=0))
    async def hear(self, event, connection):
        self._once_more()

    @jobs.job(GetFoodRequest, backoff=jobs.Backoff("fixed", first=0.01, limit=0.01))
    async def do(self, argument, job):
        self._once_more()


@pytest.fixture
def spans():
    found: list[traces.Span] = []
    traces.record_with(found.append, share=1.0)
    yield found
    traces.record_with(None)


async def ended(spans, number):
    async with asyncio.timeout(20):
        while len(spans) < number:
            await asyncio.sleep(0.01)


def check(spans, later):
    """One trace: what asked for it, then an attempt that failed and one that did not."""
    asking, failed, good = spans
    assert {span.trace_id for span in spans} == {asking.trace_id}
    assert {failed.parent_id, good.parent_id} == {asking.span_id}
    assert later.seen == [failed.header, good.header]
    assert (failed.error, good.error) == ("LookupError", "")


async def test_an_event_is_handled_in_the_trace_of_who_published_it(postgres_url, events_url, spans):
    later = Later()
    async with database(url=postgres_url, pool=12) as db, events.carry(db, later, url=events_url):
        with traces.span("asking"):
            async with db.transaction() as connection:
                await events.publish(connection, FoodsImported(data="a"))
        await ended(spans, 3)
        async with asyncio.timeout(20):
            while f'{subjects.taker("later", NAME)}",outcome="handled"' not in metrics.text():
                await asyncio.sleep(0.01)
    check(spans, later)
    text = metrics.text()
    for outcome in ("again", "handled"):
        assert f'events_handled_total{{consumer="{subjects.taker("later", NAME)}",outcome="{outcome}"}} 1.0' in text
    assert 'database_connections{state="most"} 12' in text
    assert "\nevents_relayed_total " in text
    assert "\nevents_outbox_lag_seconds 0.0" in text


async def test_a_job_is_done_in_the_trace_of_who_asked_for_it(postgres_url, spans):
    later = Later()
    async with database(url=postgres_url, pool=8) as db, jobs.work(db, later):
        with traces.span("asking"):
            async with db.transaction() as connection:
                await jobs.enqueue(connection, GetFoodRequest(name="foods/a"))
        await ended(spans, 3)
    check(spans, later)
    for outcome in ("again", "succeeded"):
        assert f'jobs_attempts_total{{kind="nourish.food.v1.GetFoodRequest",outcome="{outcome}"}} ' in metrics.text()
    assert "\njobs_running 0" in metrics.text()
