"""ARC against the algorithm as it was published, and within its bounds for entries of any size."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.runtime.cache import keys, policies
from mesh.runtime.cache.arc import Arc
from mesh.runtime.cache.entry import Entry


class Published:
    """Figure 4 of Megiddo and Modha, FAST 2003, line by line, for `c` pages. Lists have their LRU end first."""

    def __init__(self, c):
        self.c, self.p = c, 0.0
        self.t1, self.t2, self.b1, self.b2 = [], [], [], []

    def request(self, x):
        if x in self.t1 or x in self.t2:  # case I
            (self.t1 if x in self.t1 else self.t2).remove(x)
            self.t2.append(x)
            return True
        if x in self.b1:  # case II
            self.p = min(self.p + max(len(self.b2) / len(self.b1), 1.0), self.c)
            self.replace(x)
            self.b1.remove(x)
            self.t2.append(x)
        elif x in self.b2:  # case III
            self.p = max(self.p - max(len(self.b1) / len(self.b2), 1.0), 0.0)
            self.replace(x)
            self.b2.remove(x)
            self.t2.append(x)
        else:  # case IV
            if len(self.t1) + len(self.b1) == self.c:
                if len(self.t1) < self.c:
                    self.b1.pop(0)
                    self.replace(x)
                else:
                    self.t1.pop(0)
            else:
                total = sum(map(len, (self.t1, self.t2, self.b1, self.b2)))
                if total >= self.c:
                    if total == 2 * self.c:
                        self.b2.pop(0)
                    self.replace(x)
            self.t1.append(x)
        return False

    def replace(self, x):
        if self.t1 and (len(self.t1) > self.p or (x in self.b2 and len(self.t1) == self.p)):
            self.b1.append(self.t1.pop(0))
        else:
            self.b2.append(self.t2.pop(0))


def entry(size):
    made = Entry(b"", 0.0, 0.0)
    made.size = size
    return made


def ask(arc, key, size):
    if arc.get(key) is not None:
        return True
    arc.put(key, entry(size))
    return False


def same(capacity, size, requests):
    ours, published = Arc(capacity * size, 1 << 30, lambda _: 1), Published(capacity)
    for key in requests:
        assert ask(ours, key, size) == published.request(key)
        assert (list(ours.recent), list(ours.frequent)) == (published.t1, published.t2)
        assert ours.ghosts == (published.b1, published.b2)


@settings(max_examples=100, deadline=None)
@given(capacity=st.integers(1, 6), size=st.sampled_from([1, 64]), requests=st.lists(st.integers(0, 14), max_size=200))
def test_for_entries_of_one_size_it_is_the_published_algorithm(capacity, size, requests):
    same(capacity, size, requests)


@pytest.mark.parametrize("capacity", [2, 5, 12])
def test_it_is_so_in_long_traces_whose_habits_change(capacity):
    chance, requests = random.Random(capacity), []
    for habit in range(40):
        spread = chance.choice([capacity - 1, capacity + 2, 3 * capacity])
        requests += [habit + min(chance.randrange(spread), chance.randrange(spread)) for _ in range(60)]
    same(capacity, 1, requests)


steps = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "renew", "pop", "clear"]), st.integers(0, 25), st.integers(1, 60)
)


@settings(max_examples=100, deadline=None)
@given(capacity=st.integers(0, 100), history=st.integers(0, 60), done=st.lists(steps, max_size=150))
def test_entries_of_any_size_and_their_ghosts_stay_in_their_bounds(capacity, history, done):
    arc, held = Arc(capacity, history, lambda key: 5 + key % 3), {}
    for what, key, size in done:
        if what == "ask":
            found = arc.get(key)
            assert found is None or found is held[key]
            if found is None:
                held[key] = entry(size)
                assert arc.put(key, held[key]) == (size <= capacity)
        elif what == "renew":
            held[key] = entry(size)
            arc.put(key, held[key])
        elif what == "pop":
            arc.pop(key)
            assert arc.get(key) is None
        else:
            arc.clear()
        entries = {**arc.recent, **arc.frequent}
        ghosts = [key for each in arc.ghosts for key in each]
        sizes = sum(each.size for each in entries.values())
        ghost_sizes = sum(5 + key % 3 for key in ghosts)
        assert len(entries) == len(arc)
        assert sizes <= capacity
        assert ghost_sizes <= history
        assert arc.bytes == sizes + ghost_sizes
        assert not entries.keys() & set(ghosts)


def hits(policy, trace):
    """How many of the requests find their entry, 100 bytes each."""
    return sum(ask(policy, key, 100) for key in trace)


def scanned():
    """Forty keys that are asked for again and again, and between them a thousand that nobody asks for twice."""
    once = iter(range(1000, 100_000))
    for _ in range(50):
        for key in range(40):
            yield key
            yield key
        for _ in range(200):
            yield next(once)


def test_a_scan_leaves_what_is_asked_for_often():
    trace = list(scanned())
    arc, lru = Arc(100 * 60, 100 * 60, lambda _: 100), policies.of("lru", 100 * 60)
    wanted = 50 * 40
    assert hits(arc, trace) >= wanted + 49 * 35
    assert hits(lru, trace) == wanted  # the second of two requests in a row, and no more


def test_small_entries_have_few_ghosts_and_never_pass_the_bound():
    policy = policies.of("arc", 100_000)
    for number in range(5000):
        assert policy.put(number, entry(policies.ENTRY_BYTES["arc"] + keys.size(number)))
        assert policy.bytes <= 100_000
