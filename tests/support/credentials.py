"""API keys and tokens: valid ones, and functions to forge others."""

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flask import Flask

from app import create_app
from app.db.engine import db
from app.services.credentials import create_api_key

ISSUER, AUDIENCE = "https://login.example/", "orders"
TOKEN_SECONDS = 86_400  # longer than all tests take: many tokens are created at collection
SECRET_KEY = "a secret key of the installation, for tests"
SIGNING_KEY = Ed25519PrivateKey.generate()


def public_pem(key: Any) -> str:
    """The public half of a key pair."""
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def private_pem(key: Any) -> str:
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


def claims(customer: Any = "c-1", scope: Any = "orders:read orders:write", **others: Any) -> dict[str, Any]:
    """The claims of a customer's token; claims that are None are omitted."""
    now = int(time.time())
    values = {"sub": customer, "scope": scope, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + TOKEN_SECONDS}
    return {name: value for name, value in (values | others).items() if value is not None}


def token(key: Any = SIGNING_KEY, algorithm: str = "EdDSA", header: dict[str, Any] | None = None, **given: Any) -> str:
    """A signed token that is valid except for the given claims."""
    return jwt.encode(claims(**given), key, algorithm=algorithm, headers=header)


def encoded(part: Any) -> str:
    """A part of a token, as base64url."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: Any, payload: Any) -> str:
    """A header and a payload with the issuer's signature; they need not form a valid token."""
    text = f"{encoded(header)}.{encoded(payload)}"
    return f"{text}.{encoded(SIGNING_KEY.sign(text.encode()))}"


def api_key(app: Flask, *scopes: str, name: str = "shop", **kwargs: Any) -> str:
    with app.app_context():
        return create_api_key(name, scopes=list(scopes), **({"expires_in": None} | kwargs))


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def hashed(principal_id: str) -> str:
    """The keyed hash that replaces a principal id in the logs, computed as a log analysis would."""
    key = blake2b(SECRET_KEY.encode()).digest()
    return blake2b(principal_id.encode(), digest_size=8, key=key, person=b"principal in log").hexdigest()


@contextmanager
def app_with_auth(database_url: str, **settings: str) -> Iterator[Flask]:
    """The service with AUTH=required and a public key to verify tokens with."""
    keys = {"JWT_PUBLIC_KEY": public_pem(SIGNING_KEY), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
    keys["SECRET_KEY"] = SECRET_KEY
    limits = {"RATE_LIMIT_CUSTOMERS": "0"}
    app = create_app({"DATABASE_URL": database_url, "AUTH": "required", "TESTING": True} | keys | limits | settings)
    yield app
    with app.app_context():
        db.engine.dispose()
