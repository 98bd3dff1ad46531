"""Secrets of webhook endpoints, and the signatures made with them.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import hmac
import secrets
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b

from cryptography.fernet import Fernet, InvalidToken

from app.config import RANDOM_KEY_PREFIX

PREFIX = "whsec_"
_SECRET_BYTES = 32  # the specification: 24 to 64
_PLAIN, _ENCRYPTED = "plain:", "fernet:"


class UnreadableSecret(Exception):
    """The secret was encrypted with another SECRET_KEY. Only a new one helps."""


def new_secret() -> str:
    """A random secret, `whsec_` and base64."""
    return PREFIX + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(message_id: str, body: bytes, *, timestamp: int, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of a request, with one signature for each secret. `timestamp` is in seconds since 1970."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(content, secret) for secret in secrets),
    }


def _signature(content: bytes, secret: str) -> str:
    key = b64decode(secret.removeprefix(PREFIX))
    return "v1," + b64encode(hmac.digest(key, content, "sha256")).decode()


class SecretStore:
    """Seals secrets for the database and opens them again.

    With a SECRET_KEY they are encrypted and authenticated with a key derived from it: a copy of the database alone
    reveals none. Who has the settings of the service too, or runs code in it, reads them all. Without a SECRET_KEY they
    are stored as they are, and whoever reads the database can sign.
    """

    def __init__(self, secret_key: str) -> None:
        self._fernet: Fernet | None = None
        if not secret_key.startswith(RANDOM_KEY_PREFIX):
            key = blake2b(secret_key.encode(), digest_size=32, person=b"webhook secrets").digest()
            self._fernet = Fernet(urlsafe_b64encode(key))

    def seal(self, secret: str) -> str:
        """The text to store."""
        if self._fernet is None:
            return _PLAIN + secret
        return _ENCRYPTED + self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret in a stored text. Raises UnreadableSecret."""
        if sealed.startswith(_PLAIN):
            return sealed.removeprefix(_PLAIN)
        if self._fernet is None:
            raise UnreadableSecret
        try:
            return self._fernet.decrypt(sealed.removeprefix(_ENCRYPTED)).decode()
        except InvalidToken:
            raise UnreadableSecret from None
