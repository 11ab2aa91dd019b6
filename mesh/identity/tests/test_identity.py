"""SPIFFE ids, what the local authority issues, and development tokens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt

from mesh.identity import ca, files, tokens
from mesh.identity.ca import CertificateAuthority
from mesh.identity.spiffe import SpiffeId

FOOD = "spiffe://nourish.local/ns/nourish/sa/food"
SEGMENT = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)


@given(domain=SEGMENT, namespace=SEGMENT, service=SEGMENT)
def test_an_id_that_is_written_is_read_back(domain: str, namespace: str, service: str) -> None:
    identity = SpiffeId(domain, namespace, service)
    assert SpiffeId.parse(str(identity)) == identity


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://nourish.local/ns/nourish/sa/food",
        "spiffe://Nourish.local/ns/nourish/sa/food",
        "spiffe://nourish.local/ns/nourish/sa/",
        "spiffe://nourish.local/ns/nourish/sa/food/",
        "spiffe://nourish.local/ns/nourish/sa/..",
        "spiffe://nourish.local/ns/../sa/food",
        "spiffe://nourish.local/ns/nourish/sa/food?x=1",
        "spiffe://nourish.local/ns/nourish/sa/food\n",
        f"spiffe://nourish.local/ns/nourish/sa/{'x' * 2048}",
    ],
)
def test_what_is_no_id_of_this_mesh_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not spiffe"):
        SpiffeId.parse(text)


def _leaf(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / files.CERTIFICATE).read_bytes())


def test_a_certificate_names_its_service_by_spiffe_id_alone_for_one_hour(tmp_path: Path) -> None:
    identity = CertificateAuthority(tmp_path).issue("food", FOOD)
    leaf = _leaf(identity.folder)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [(type(name), name.value) for name in san] == [(x509.UniformResourceIdentifier, FOOD)]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert timedelta(minutes=59) < identity.expires - datetime.now(UTC) <= timedelta(hours=1)
    assert leaf.not_valid_before_utc <= datetime.now(UTC)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate((identity.folder / files.TRUST).read_bytes()))


def test_what_is_read_back_is_what_was_issued(tmp_path: Path) -> None:
    identity = CertificateAuthority(tmp_path).issue("food", FOOD)
    assert ca.read(tmp_path / "food") == identity
    assert not identity.overdue


def test_an_id_of_another_service_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an id of nutrition"):
        CertificateAuthority(tmp_path).issue("nutrition", FOOD)


def test_only_the_owner_can_read_what_is_written(tmp_path: Path) -> None:
    home = tmp_path / "identity"
    CertificateAuthority(home).issue("food", FOOD)
    tokens.mint(home, "alice")
    for path in [home, *home.rglob("*")]:
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_second_start_keeps_the_root_and_one_that_has_ended_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = CertificateAuthority(tmp_path).root
    assert CertificateAuthority(tmp_path).root.certificate == first.certificate
    monkeypatch.setattr(ca, "ROOT_LIFETIME", timedelta(seconds=0))
    ended = CertificateAuthority(tmp_path / "ended").root
    monkeypatch.undo()
    assert CertificateAuthority(tmp_path / "ended").root.certificate != ended.certificate


def test_the_root_of_an_earlier_version_is_adopted_with_the_trust_in_it(tmp_path: Path) -> None:
    former = CertificateAuthority(tmp_path).root
    for path in (tmp_path / ca.ROOTS).iterdir():
        text = path.read_bytes()
        path.unlink()
        if path.suffix == ".pem":
            key, begin, certificate = text.partition(b"-----BEGIN CERTIFICATE")
            (tmp_path / "ca.key").write_bytes(key)
            (tmp_path / "ca.pem").write_bytes(begin + certificate)
    identity = CertificateAuthority(tmp_path).issue("food", FOOD)
    _leaf(identity.folder).verify_directly_issued_by(former.certificate)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ca.ROOTS, "food"]


def test_if_nobody_knows_which_root_issues_it_is_the_oldest_which_all_trust(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    first = authority.root
    authority.trust_next()
    (tmp_path / ca.ROOTS / "issuer").unlink()
    assert CertificateAuthority(tmp_path).issue("food", FOOD).issuer == first.common_name


def test_two_starts_at_once_agree_on_one_root(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        identities = list(
            pool.map(lambda n: CertificateAuthority(tmp_path).issue(f"s{n}", f"{FOOD[:-4]}s{n}"), range(8))
        )
    (root,) = CertificateAuthority(tmp_path).roots
    for identity in identities:
        _leaf(identity.folder).verify_directly_issued_by(root.certificate)


@pytest.mark.parametrize("path", ["food", f"{ca.ROOTS}/9.pem"])
async def test_a_renewal_that_fails_is_tried_again(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ca, "RETRY_SECONDS", 0.01)
    authority = CertificateAuthority(tmp_path)
    obstacle = tmp_path / path
    obstacle.write_text("neither a folder nor a root")
    renewed: asyncio.Queue[ca.Identity] = asyncio.Queue()
    rotation = asyncio.create_task(authority.rotate_forever({"food": FOOD}, renewed.put_nowait))
    try:
        async with asyncio.timeout(10):
            while "cannot renew the certificate of food" not in caplog.text:
                await asyncio.sleep(0.01)
            obstacle.unlink()
            assert await renewed.get() == ca.read(tmp_path / "food")
        assert not rotation.done()
    finally:
        rotation.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await rotation


def test_a_failed_change_leaves_the_old_files_in_force(tmp_path: Path) -> None:
    files.publish(tmp_path, {"a": b"old", "b": b"old"})
    with pytest.raises(OSError):
        files.publish(tmp_path, {"a": b"new", "no/such/folder": b"new"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"old"
    assert len([p for p in tmp_path.iterdir() if p.is_dir() and not p.is_symlink()]) == 1


def test_a_token_says_who_what_and_for_how_long(tmp_path: Path) -> None:
    token = tokens.mint(tmp_path, "alice", ["food.write", "food.write", "profile.read"], timedelta(minutes=5))
    claims = tokens.verify(tmp_path, token)
    assert (claims.user, claims.scopes) == ("alice", ("food.write", "profile.read"))
    assert claims.expires - claims.issued == 300
    raw = jwt.decode(token, tokens.signing_key(tmp_path)).claims
    assert (raw["iss"], raw["aud"], raw["scope"]) == ("https://nourish.local", "nourish", "food.write profile.read")
    assert raw["jti"] != jwt.decode(tokens.mint(tmp_path, "alice"), tokens.signing_key(tmp_path)).claims["jti"]


def test_what_envoy_is_given_holds_no_private_part(tmp_path: Path) -> None:
    (key,) = json.loads(tokens.public_jwks(tmp_path))["keys"]
    assert (key["kty"], key["alg"], key["use"]) == ("EC", "ES256", "sig")
    assert "d" not in key
    assert key["kid"]


def test_a_token_that_is_expired_changed_or_of_another_mesh_is_refused(tmp_path: Path) -> None:
    good = tokens.mint(tmp_path, "alice")
    head, body, signature = good.split(".")
    _, other_body, _ = tokens.mint(tmp_path, "mallory").split(".")
    bad = [
        tokens.mint(tmp_path, "alice", lifetime=timedelta(hours=-1)),
        f"{head}.{other_body}.{signature}",
        tokens.mint(tmp_path / "other", "alice"),
        "not a token",
    ]
    for token in bad:
        with pytest.raises(tokens.TokenError):
            tokens.verify(tmp_path, token)
    assert tokens.verify(tmp_path, f"{head}.{body}.{signature}").user == "alice"


@pytest.mark.parametrize(("user", "scopes"), [("", []), ("a\nb", []), ("alice", ["a b"]), ("alice", [""])])
def test_a_nameless_user_or_a_scope_with_white_space_is_refused(tmp_path: Path, user: str, scopes: list[str]) -> None:
    with pytest.raises(ValueError):
        tokens.mint(tmp_path, user, scopes)
