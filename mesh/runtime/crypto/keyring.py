"""The keys that encrypt data keys: a file each in one folder, where the runner or a Secret of Kubernetes puts them."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

KEY_BYTES = 32
CURRENT = "current"  # a file that names the key to encrypt with; without it that is the last by name


class KeyringError(RuntimeError):
    """A key is missing, or is not what it was. Nothing is lost: the right file in the folder mends it."""


class Keyring:
    """The keys in `folder`. A file's name is the key's id, its text the key in base64."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keys: dict[str, bytes] = {}
        self._current = ""

    @property
    def current(self) -> str:
        """The id of the key to encrypt with."""
        return self._current

    @property
    def empty(self) -> bool:
        """Whether nobody has put a key there: so it is with a service that stores nothing sensitive."""
        return not self.folder.is_dir() or all(path.name.startswith(".") for path in self.folder.iterdir())

    def read(self) -> None:
        """Reads the folder anew.

        Raises:
            KeyringError: there is no key in it, or a file is none.
        """
        try:
            named = self.folder / CURRENT
            current = named.read_text().strip() if named.exists() else ""  # first: a new key is there before its name
            names = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(".") and p.name != CURRENT)
            keys = {name: self._key(name) for name in names}
        except OSError as error:
            raise KeyringError(f"the keys in {self.folder} cannot be read: {error.strerror}") from None
        if not keys:
            raise KeyringError(f"there is no key in {self.folder}: put one there, 32 random bytes in base64")
        if current and current not in keys:
            raise KeyringError(f"{named} names the key {current!r}, and there is {', '.join(keys)}")
        self._keys, self._current = keys, current or max(keys)

    def key(self, id_: str) -> bytes:
        """The key with that id; it may have come since the folder was read.

        Raises:
            KeyringError: there is no such key.
        """
        if id_ not in self._keys:
            self.read()
        if id_ not in self._keys:
            raise KeyringError(
                f"data in the database is encrypted by the key {id_!r}, which is not in {self.folder} (there is "
                f"{', '.join(self._keys)}): put its file back; nothing was changed"
            )
        return self._keys[id_]

    def _key(self, name: str) -> bytes:
        try:
            key = base64.b64decode((self.folder / name).read_text().strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise KeyringError(f"{self.folder / name} is no key: it must hold {KEY_BYTES} bytes in base64")
        return key
