"""The laptop's certificate authority: short-lived X.509-SVIDs, renewed at half of their life without a restart.

How its root gives way to another is in `rotation`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity import files
from mesh.identity.roots import Root, Roots
from mesh.identity.spiffe import SpiffeId

log = logging.getLogger(__name__)

LEAF_LIFETIME = timedelta(hours=1)
ROOT_LIFETIME = timedelta(days=365)
# A leaf is valid from a little earlier, for readers whose clock is slow: this, or a tenth of its life if that is less.
CLOCK_SKEW = timedelta(minutes=1)
# Renewal is spread over this share of a leaf's life around its half, so that services do not all renew at once.
JITTER = 0.1
RETRY_SECONDS = 5.0
ROOTS = "ca.d"  # no service's folder: their names have no dot
# Where a mesh had its only root before it could have two.
FORMER_CERTIFICATE, FORMER_KEY = "ca.pem", "ca.key"


@dataclass(frozen=True)
class Identity:
    """A service's certificate as it lies in `folder`."""

    service: str
    spiffe_id: str
    folder: Path
    serial: str  # as `hex_serial` gives it
    issuer: str  # the common name of the root that signed it
    not_before: datetime  # UTC
    expires: datetime  # UTC

    @property
    def half_life(self) -> datetime:
        """When it is due for renewal."""
        return self.not_before + (self.expires - self.not_before) / 2

    @property
    def overdue(self) -> bool:
        """Whether less than a quarter of its life is left: renewal has failed for long, and somebody should look."""
        return datetime.now(UTC) > self.expires - (self.expires - self.not_before) / 4


class CertificateAuthority:
    """The authority of one mesh, in `folder` (mode 0700): its roots in `ca.d`, and a folder for each service.

    Several processes may use one folder: each reads anew which root issues, under one lock.

    Args:
        folder: created if it is not there, with a first root.
        lifetime: of the certificates it issues.

    Raises:
        OSError: the folder cannot be read or written.
        ValueError: what lies there is no root.
    """

    def __init__(self, folder: Path, *, lifetime: timedelta = LEAF_LIFETIME) -> None:
        self._folder = folder.resolve()
        self._lifetime = lifetime
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._roots = Roots(self._folder / ROOTS)
        with self._roots.locked():
            self._adopt()
            issuer = self._roots.issuer()
            # Nobody trusts a root that has ended, so there is nothing to overlap with.
            if issuer is None or issuer.past(1):
                self._roots.promote(self._make_root())

    @property
    def root(self) -> Root:
        """The root that issues.

        Raises:
            ValueError: it was removed.
        """
        if (issuer := self._roots.issuer()) is None:
            raise ValueError(f"the root is gone from {self._folder / ROOTS}: restart the mesh, and a new one is made")
        return issuer

    @property
    def roots(self) -> list[Root]:
        """All that are trusted, the newest first."""
        return self._roots.all()

    @property
    def rotating(self) -> bool:
        """Whether one root is giving way to another."""
        return len(self._roots.all()) > 1

    def rotation(self) -> AbstractContextManager[None]:
        """Held while one root gives way to another; entering raises BlockingIOError while anybody else holds it."""
        return self._roots.rotating()

    def issue(self, service: str, spiffe_id: str) -> Identity:
        """Writes a new key and certificate to `folder/<service>` in one step; Envoys that watch it take them at once.

        Raises:
            ValueError: `spiffe_id` is malformed, or is another service's.
            OSError: the files cannot be written; the old ones stay in force.
        """
        if SpiffeId.parse(spiffe_id).service != service:
            raise ValueError(f"{spiffe_id} is not an id of {service}")
        with self._roots.locked():
            return self._issue(service, spiffe_id)

    def issued(self) -> list[Identity]:
        """What every service has now."""
        return [read(path.parent) for path in sorted(self._folder.glob(f"*/{files.CERTIFICATE}"))]

    def trust_next(self) -> Root:
        """Puts a new root, or one that was made before and does not issue yet, into every bundle beside the others."""
        with self._roots.locked():
            issuer, newest = self.root, self._roots.all()[0]
            new = self._make_root() if newest.number == issuer.number and not self.rotating else newest
            self._write_bundles()
            return new

    def issue_by(self, root: Root) -> None:
        """Lets `root`, which every proxy trusts, issue, and replaces every certificate that another one issued."""
        with self._roots.locked():
            self._roots.promote(root)
            for identity in self.issued():
                if not _signed_by(identity.folder, root):
                    self._issue(identity.service, identity.spiffe_id)

    def drop_others(self, root: Root) -> list[int]:
        """Ends the trust in all roots but `root`, which issues; returns their numbers.

        Raises:
            ValueError: a certificate of another root is in force.
        """
        with self._roots.locked():
            if strays := [i.service for i in self.issued() if not _signed_by(i.folder, root)]:
                raise ValueError(f"{', '.join(strays)} still has a certificate of another root")
            others = [other for other in self._roots.all() if other.number != root.number]
            for other in others:
                self._roots.drop(other)
            self._write_bundles()
            return [other.number for other in others]

    async def rotate_forever(
        self, services: Mapping[str, str], on_renewed: Callable[[Identity], None] | None = None
    ) -> None:
        """Renews the certificates of `services` (name to SPIFFE id) at half of their life, until cancelled.

        A certificate that is missing is issued at once. A renewal that fails is logged and tried again.
        """
        async with asyncio.TaskGroup() as group:
            for service, spiffe_id in services.items():
                group.create_task(self._rotate(service, spiffe_id, on_renewed), name=f"rotate {service}")

    async def _rotate(self, service: str, spiffe_id: str, on_renewed: Callable[[Identity], None] | None) -> None:
        while True:
            with suppress(OSError, ValueError):
                identity = read(self._folder / service)
                spread = (identity.expires - identity.not_before) * JITTER
                due = identity.half_life + spread * random.uniform(-0.5, 0.5)  # noqa: S311 - not a secret
                await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
                if read(self._folder / service) != identity:  # another process renewed it
                    continue
            try:
                renewed = await asyncio.to_thread(self.issue, service, spiffe_id)
            except (OSError, ValueError) as error:
                log.error("cannot renew the certificate of %s: %s; next try in %g s", service, error, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            log.info("renewed the certificate of %s: serial %s, until %s", service, renewed.serial, renewed.expires)
            if on_renewed:
                on_renewed(renewed)

    def _issue(self, service: str, spiffe_id: str) -> Identity:
        folder = self._folder / service
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, secret in sds_files(folder).items():
            # A JSON document is a YAML document.
            files.replace(folder / name, json.dumps({"resources": [secret]}, indent=2).encode() + b"\n")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(service, spiffe_id, key.public_key())
        files.publish(
            folder, {files.CERTIFICATE: _pem(certificate), files.KEY: _key_pem(key), files.TRUST: self._bundle()}
        )
        return _identity(folder, certificate)

    def _write_bundles(self) -> None:
        """Gives every service the bundle of now, with the certificate that it has."""
        for identity in self.issued():
            kept = {name: (identity.folder / name).read_bytes() for name in (files.CERTIFICATE, files.KEY, files.TRUST)}
            if kept[files.TRUST] != self._bundle():
                files.publish(identity.folder, {**kept, files.TRUST: self._bundle()})

    def _bundle(self) -> bytes:
        return b"".join(_pem(root.certificate) for root in self._roots.all())

    def _adopt(self) -> None:
        """Takes over the root that an earlier version left, with the trust that running proxies have in it."""
        certificate, key = self._folder / FORMER_CERTIFICATE, self._folder / FORMER_KEY
        if certificate.exists() and key.exists() and not self._roots.all():
            self._roots.add(1, key.read_bytes() + certificate.read_bytes())
        for path in (certificate, key):
            path.unlink(missing_ok=True)

    def _make_root(self) -> Root:
        key = ec.generate_private_key(ec.SECP256R1())
        root = _sign_root(key)
        made = Root(max((r.number for r in self._roots.all()), default=0) + 1, root, key)
        self._roots.add(made.number, _key_pem(key) + _pem(root))
        return made

    def _sign(self, service: str, spiffe_id: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """An X.509-SVID: exactly one URI SAN, no CA, digitalSignature only (X.509-SVID standard, sections 2 and 4)."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, service)])
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        root = self.root
        issuer_key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key())
        builder = _builder(name, root.certificate.subject, key, self._lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
        builder = builder.add_extension(both, critical=False)
        builder = builder.add_extension(issuer_key_id, critical=False)
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)])
        return builder.add_extension(san, critical=False).sign(root.key, hashes.SHA256())


def read(folder: Path) -> Identity:
    """Reads the certificate that lies in a service's folder.

    Raises:
        OSError: there is none.
        ValueError: it is not one of ours.
    """
    return _identity(folder, x509.load_pem_x509_certificate((folder / files.CERTIFICATE).read_bytes()))


def hex_serial(certificate: x509.Certificate) -> str:
    """The serial number as Envoy prints it: lower-case hex, whole bytes."""
    number = certificate.serial_number
    return number.to_bytes((number.bit_length() + 7) // 8, "big").hex()


def sds_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The Envoy secrets (`...tls.v3.Secret`) that point at the files of `folder`, by file name."""
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    watched = {"watched_directory": {"path": str(folder)}}
    certificate = {
        "certificate_chain": {"filename": str(folder / files.CERTIFICATE)},
        "private_key": {"filename": str(folder / files.KEY)},
        **watched,
    }
    trust = {"trusted_ca": {"filename": str(folder / files.TRUST)}, **watched}
    return {
        files.SDS_CERTIFICATE: {"@type": kind, "name": files.CERTIFICATE_SECRET, "tls_certificate": certificate},
        files.SDS_TRUST: {"@type": kind, "name": files.TRUST_SECRET, "validation_context": trust},
    }


def _sign_root(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # Each root has a name of its own, so that whoever verifies never tries the wrong one.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Nourish local CA {key_id.digest.hex()[:8]}")])
    builder = _builder(name, name, key.public_key(), ROOT_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    return builder.add_extension(key_id, critical=False).sign(key, hashes.SHA256())


def _signed_by(folder: Path, root: Root) -> bool:
    certificate = x509.load_pem_x509_certificate((folder / files.CERTIFICATE).read_bytes())
    try:
        certificate.verify_directly_issued_by(root.certificate)
    except (ValueError, InvalidSignature):
        return False
    return True


def _identity(folder: Path, certificate: x509.Certificate) -> Identity:
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"{folder / files.CERTIFICATE} has {len(uris)} URI names, not one")
    return Identity(
        service=SpiffeId.parse(uris[0]).service,
        spiffe_id=uris[0],
        folder=folder,
        serial=hex_serial(certificate),
        issuer=str(certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value),
        not_before=certificate.not_valid_before_utc,
        expires=certificate.not_valid_after_utc,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - min(CLOCK_SKEW, lifetime / 10),
        not_valid_after=now + lifetime,
    )


def _key_usage(**granted: bool) -> x509.KeyUsage:
    usages = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{usage: granted.get(usage, False) for usage in usages})


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
