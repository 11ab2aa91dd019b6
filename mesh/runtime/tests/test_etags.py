"""Etags: what they are of, and when a change is refused."""

import pytest
from nourish.profile.v1.profile_pb2 import Profile

from mesh.runtime import errors, etags


def test_an_etag_is_of_a_row_and_its_revision_and_tells_neither():
    assert etags.of("a", 1) == etags.of("a", 1)
    assert len({etags.of("a", 1), etags.of("a", 2), etags.of("b", 1), etags.of("a1", "")}) == 4
    assert len(etags.of("a", 10**20)) <= 64


def test_a_change_with_an_old_etag_is_refused_and_one_without_is_not():
    stored = Profile(name="profiles/1", etag=etags.of(1, 2))
    etags.check(stored, stored.etag)
    etags.check(stored, "")
    with pytest.raises(errors.ServiceError, match="profiles/1 has changed"):
        etags.check(stored, etags.of(1, 1))
