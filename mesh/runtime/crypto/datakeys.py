"""Data keys: one a user, made when it is first needed, kept in the service's database under a key of the keyring."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from cachetools import TTLCache
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth
from mesh.runtime.crypto.keyring import KEY_BYTES, Keyring, KeyringError
from mesh.runtime.crypto.parts import take_out

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEPT_SECONDS = 60.0  # in memory: so long a process may still read what another has erased
KEPT_KEYS = 4096
REWRAPPED_AT_ONCE = 200
_VERSION = b"\x01"
_ID_BYTES, _NONCE_BYTES = 8, 12
# Before the rest of a stored message, as a field that no contract can have: whoever reads the message passes over it.
_FIELD = b"\xfa\xff\xff\xff\x0f"  # number 536,870,911, length-delimited
_LENGTH_BYTES = 5

_GET = sa.text("SELECT id, kek, wrapped FROM runtime_data_key WHERE owner = :owner")
_HOLD = sa.text("SELECT id, kek, wrapped FROM runtime_data_key WHERE owner = :owner FOR KEY SHARE")
_MAKE = sa.text(
    "INSERT INTO runtime_data_key (owner, id, kek, wrapped) VALUES (:owner, :id, :kek, :wrapped) ON CONFLICT DO NOTHING"
)
_ERASE = sa.text("DELETE FROM runtime_data_key WHERE owner = :owner")
_ONE_EACH = sa.text("SELECT DISTINCT ON (kek) owner, id, kek, wrapped FROM runtime_data_key ORDER BY kek")
# Not `<>`: so it is two ranges of an index.
_OLD = sa.text(
    """
    SELECT owner, id, kek, wrapped FROM runtime_data_key WHERE kek < :current OR kek > :current
    LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
    """
)
_REWRAP = sa.text("UPDATE runtime_data_key SET kek = :kek, wrapped = :wrapped WHERE owner = :owner AND id = :id")


class ErasedError(Exception):
    """The data key that something was encrypted by is gone, and it with the key."""


@dataclass(frozen=True)
class DataKey:
    """A user's key. What is encrypted for one place (table, column, row) is not decrypted in another."""

    id: bytes
    cipher: AESGCM
    hashing: bytes

    def seal(self, plain: bytes, place: str) -> bytes:
        """`plain`, encrypted for that place."""
        head, nonce = _VERSION + self.id, secrets.token_bytes(_NONCE_BYTES)
        return head + nonce + self.cipher.encrypt(nonce, plain, head + place.encode())

    def unseal(self, sealed: bytes, place: str) -> bytes:
        """What was encrypted.

        Raises:
            ErasedError: it was encrypted by a key that is gone.
            ValueError: it was changed, or comes from another place.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - heavy, and not every process has data keys

        head, rest = sealed[: 1 + _ID_BYTES], sealed[1 + _ID_BYTES :]
        if head[:1] != _VERSION:
            raise ValueError(f"{place} holds nothing that is encrypted as this version of the runtime does it")
        if head[1:] != self.id:
            raise ErasedError(f"{place} was encrypted by a data key that was erased")
        try:
            return self.cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], head + place.encode())
        except InvalidTag:
            raise ValueError(f"what {place} holds was not encrypted for there, or was changed since") from None

    def mac(self, text: bytes) -> bytes:
        """A hash of `text`, from which nobody without the key can guess it."""
        return hmac.digest(self.hashing, text, "sha256")

    def seal_fields(self, message: Message, place: str) -> bytes:
        """The sensitive fields of `message`, which loses them, encrypted for a column of their own."""
        return self.seal(take_out(message).SerializeToString(), place)

    def unseal_fields(self, sealed: bytes, message: Message, place: str) -> None:
        """Gives `message` its sensitive fields back.

        Raises:
            ErasedError, ValueError: as `unseal`.
        """
        message.MergeFromString(self.unseal(sealed, place))


class DataKeys:
    """The data keys in a service's database.

    An owner is a user; '' is the service itself, for what no user asked for.
    """

    def __init__(self, keyring: Keyring | None) -> None:
        self._ring = keyring
        self._wrapping = ""  # the key that has encrypted all of them, as far as this process knows
        self._kept: TTLCache[str, DataKey] = TTLCache(KEPT_KEYS, KEPT_SECONDS)

    @property
    def keyring(self) -> Keyring:
        """The keys that encrypt them.

        Raises:
            KeyringError: this process was given none.
        """
        if self._ring is None:
            raise KeyringError(
                "NOURISH_KEYS_DIR is not set, and what the contract marks sensitive is not stored without a key: "
                "start this service with `mesh up`, or set it as the chart does"
            )
        if not self._ring.current:
            self._ring.read()
        return self._ring

    # --- The keys of users ---

    async def reading(self, connection: AsyncConnection, owner: str | None = None) -> DataKey:
        """The key of the user of this call, or of `owner`, to decrypt with.

        Raises:
            ErasedError: there is none.
            KeyringError: the keyring does not have the key that it is encrypted by.
        """
        owner = _owner() if owner is None else owner
        if found := self._kept.get(owner):
            return found
        row = (await connection.execute(_GET, {"owner": owner})).one_or_none()
        if row is None:
            raise ErasedError("the user's data key was erased, and with it what it had encrypted")
        self._kept[owner] = self._opened(owner, row)
        return self._kept[owner]

    async def writing(self, connection: AsyncConnection, owner: str | None = None) -> DataKey:
        """The key to encrypt with, which stays until the transaction ends; made if there is none.

        Raises:
            KeyringError: as `reading`.
        """
        return await connection.run_sync(self.writing_sync, _owner() if owner is None else owner)

    def writing_sync(self, connection: sa.Connection, owner: str) -> DataKey:
        """As `writing`, for migrations."""
        row = connection.execute(_HOLD, {"owner": owner}).one_or_none()
        if row is None:
            connection.execute(_MAKE, self._made(owner))
            row = connection.execute(_HOLD, {"owner": owner}).one()
        kept = self._kept.get(owner)  # one that was made here is not kept: it may be rolled back
        return kept if kept and kept.id == row.id else self._opened(owner, row)

    async def erase(self, connection: AsyncConnection, owner: str) -> bool:
        """Erases a user's key, and so all that it has encrypted; whether there was one."""
        self._kept.pop(owner, None)
        return bool((await connection.execute(_ERASE, {"owner": owner})).rowcount)

    # --- Stored messages ---

    async def dump(self, connection: AsyncConnection, message: Message, place: str, owner: str | None = None) -> bytes:
        """A message as bytes in which what is sensitive is encrypted; without that part they are still a message.

        Raises:
            KeyringError: as `writing`.
        """
        rest = type(message)()
        rest.CopyFrom(message)
        taken = take_out(rest)
        if not taken.ByteSize():
            return message.SerializeToString()
        sealed = (await self.writing(connection, owner)).seal(taken.SerializeToString(), place)
        return _FIELD + _length(sealed) + sealed + rest.SerializeToString()

    async def load(self, connection: AsyncConnection, stored: bytes, place: str, owner: str | None = None) -> bytes:
        """The bytes of the message that `dump` was given; also of one that was stored before it was encrypted.

        Raises:
            ErasedError, KeyringError, ValueError: it cannot be decrypted.
        """
        if not is_dumped(stored):
            return stored
        start = len(_FIELD) + _LENGTH_BYTES
        end = start + sum((byte & 0x7F) << 7 * at for at, byte in enumerate(stored[len(_FIELD) : start]))
        taken = (await self.reading(connection, owner)).unseal(stored[start:end], place)
        return stored[end:] + taken  # one after the other are one message

    # --- The keys that encrypt them ---

    async def check(self, connection: AsyncConnection) -> None:
        """Finds out whether the keyring opens what is there.

        Raises:
            KeyringError: it does not.
        """
        for row in await connection.execute(_ONE_EACH):
            self._opened(row.owner, row)

    def has_new(self) -> bool:
        """Whether the current key has changed since all data keys were encrypted by it.

        Raises:
            KeyringError: the keyring cannot be read.
        """
        if self._ring is None or self._ring.empty:
            return False
        self._ring.read()
        return self._ring.current != self._wrapping

    async def rewrap(self, connection: AsyncConnection) -> int:
        """Encrypts some data keys by the current key that still are by another; how many, 0 at the end.

        Each is changed in its own right and by nobody twice: it may be interrupted, and several may do it at once.

        Raises:
            KeyringError: one cannot be decrypted.
        """
        if self._ring is None or self._ring.empty:
            return 0
        self._ring.read()
        current = self._ring.current
        rows = (await connection.execute(_OLD, {"current": current, "most": REWRAPPED_AT_ONCE})).all()
        if rows:
            changes = [
                {"owner": row.owner, "id": row.id, **self._wrapped(row.owner, row.id, self._secret(row.owner, row))}
                for row in rows
            ]
            await connection.execute(_REWRAP, changes)
        else:
            self._wrapping = current
        return len(rows)

    def _made(self, owner: str) -> dict[str, Any]:
        self.keyring.read()  # not by a key that has given way a moment ago
        id_ = secrets.token_bytes(_ID_BYTES)
        return {"owner": owner, "id": id_, **self._wrapped(owner, id_, secrets.token_bytes(KEY_BYTES))}

    def _wrapped(self, owner: str, id_: bytes, secret: bytes) -> dict[str, Any]:
        ring, nonce = self.keyring, secrets.token_bytes(_NONCE_BYTES)
        sealed = _cipher(ring.key(ring.current)).encrypt(nonce, secret, _whose(owner, id_))
        return {"kek": ring.current, "wrapped": nonce + sealed}

    def _opened(self, owner: str, row: Any) -> DataKey:
        secret = self._secret(owner, row)
        return DataKey(bytes(row.id), _cipher(secret), hmac.digest(secret, b"hashing", "sha256"))

    def _secret(self, owner: str, row: Any) -> bytes:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        wrapped = bytes(row.wrapped)
        cipher = _cipher(self.keyring.key(row.kek))
        try:
            return cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _whose(owner, bytes(row.id)))
        except InvalidTag:
            raise KeyringError(
                f"{self.keyring.folder / row.kek} is not the key that data in the database was encrypted by under this "
                "name: put the right one back; nothing was changed"
            ) from None


def is_dumped(stored: bytes) -> bool:
    """Whether a part of it is encrypted."""
    return stored.startswith(_FIELD)


def _length(part: bytes) -> bytes:
    """A varint of five bytes, whatever it says: so the end of it is known."""
    last = _LENGTH_BYTES - 1
    return bytes([len(part) >> 7 * at & 0x7F | (0x80 if at < last else 0) for at in range(_LENGTH_BYTES)])


def _owner() -> str:
    return auth.principal().user or ""


def _whose(owner: str, id_: bytes) -> bytes:
    return b"runtime_data_key/" + id_ + owner.encode()


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - as above

    return AESGCM(key)
