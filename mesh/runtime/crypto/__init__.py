"""What the contract marks sensitive is encrypted before it is stored: each user's by a data key of the user's own.

A data key lies in the service's database, encrypted by a key of the service's own, which lies in a file.
`Database.keys` has the data keys; erasing a user's key erases what was encrypted by it, wherever copies of that are.
"""

from mesh.runtime.crypto.datakeys import DataKey, DataKeys
from mesh.runtime.crypto.keyring import Keyring, KeyringError

__all__ = ["DataKey", "DataKeys", "Keyring", "KeyringError"]
