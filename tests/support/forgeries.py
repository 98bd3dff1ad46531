"""Tokens that must be rejected, by what is wrong with them."""

import hmac
import json
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import OKPAlgorithm

from tests.support.credentials import (
    AUDIENCE,
    ISSUER,
    SIGNING_KEY,
    TOKEN_SECONDS,
    claims,
    encoded,
    public_pem,
    signed,
    token,
)

RSA_KEY = rsa.generate_private_key(65537, 2048)
P256_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ed25519.Ed25519PrivateKey.generate()
HEADER = {"alg": "EdDSA", "typ": "JWT"}
NOW = int(time.time())


def hmac_with(secret: str, algorithm: str = "HS256") -> str:
    """A token signed with a public value as the shared secret (algorithm confusion)."""
    text = f"{encoded({'alg': algorithm, 'typ': 'JWT'})}.{encoded(claims())}"
    return f"{text}.{encoded(hmac.digest(secret.encode(), text.encode(), algorithm.replace('HS', 'sha')))}"


def unsigned(algorithm: Any) -> str:
    return f"{encoded({'alg': algorithm, 'typ': 'JWT'})}.{encoded(claims())}."


def other_key_with_header(**header: Any) -> str:
    """A token signed with another key, which its header contains or links to."""
    return token(OTHER_KEY, header=header)


GOOD = token()
HEAD, BODY, SIGNATURE = GOOD.split(".")
OWN_JWK = json.loads(OKPAlgorithm.to_jwk(OTHER_KEY.public_key()))

FORGED: dict[str, str] = {
    # no signature, or one of another kind
    **{f"alg {name}": unsigned(name) for name in ("none", "None", "NONE", "nOnE", "", None, 0, [], {})},
    "alg none, signature kept": f"{encoded({'alg': 'none'})}.{BODY}.{SIGNATURE}",
    "no alg": signed({"typ": "JWT"}, claims()),
    **{f"{name} with the public key": hmac_with(public_pem(SIGNING_KEY), name) for name in ("HS256", "HS384", "HS512")},
    "HS256 with nothing": hmac_with(""),
    "HS256 with the issuer": hmac_with(ISSUER),
    "HS256 named over EdDSA": signed({"alg": "HS256", "typ": "JWT"}, claims()),
    **{f"{alg} of its own": token(RSA_KEY, alg) for alg in ("RS256", "RS384", "RS512", "PS256")},
    "ES256 of its own": token(P256_KEY, "ES256"),
    "ES384": token(ec.generate_private_key(ec.SECP384R1()), "ES384"),
    "ES256K": token(ec.generate_private_key(ec.SECP256K1()), "ES256K"),
    "Ed448": token(ed448.Ed448PrivateKey.generate()),
    "RS256 named over EdDSA": signed({"alg": "RS256", "typ": "JWT"}, claims()),
    "ES256 named over EdDSA": signed({"alg": "ES256", "typ": "JWT"}, claims()),
    "ES256 of zeros": f"{encoded({'alg': 'ES256', 'typ': 'JWT'})}.{BODY}.{encoded(bytes(64))}",
    "EdDSA of zeros": f"{HEAD}.{BODY}.{encoded(bytes(64))}",
    # a key of the attacker's
    "a stranger's key": token(OTHER_KEY),
    "jwk": other_key_with_header(jwk=OWN_JWK),
    "jku": other_key_with_header(jku="http://127.0.0.1:1/jwks.json"),
    "x5u": other_key_with_header(x5u="http://127.0.0.1:1/cert.pem"),
    "x5c": other_key_with_header(x5c=["MIIB"]),
    **{
        f"kid {kid!r}": other_key_with_header(kid=kid)
        for kid in ("x", "", "../../../../dev/null", "' OR '1'='1", "k\0", "a" * 900, "http://127.0.0.1:1/", "é")
    },
    **{f"kid {kid!r}": signed(HEADER | {"kid": kid}, claims()) for kid in (1, [], {}, True)},
    # the right key, but an invalid token
    "other issuer": token(iss="https://login.example"),
    "issuer in capitals": token(iss=ISSUER.upper()),
    "no issuer": token(iss=None),
    "issuers": signed(HEADER, claims(iss=[ISSUER])),
    "other audience": token(aud="invoices"),
    "other audiences": token(aud=["invoices", "stock"]),
    "no audience": token(aud=None),
    "audience of a part": token(aud=AUDIENCE[:-1]),
    "audience of another type": signed(HEADER, claims(aud={"orders": 1})),
    "audience with a number": signed(HEADER, claims(aud=[AUDIENCE, 1])),
    "expired": token(exp=NOW - 60),
    "expired for long": token(exp=0),
    "no expiry": token(exp=None),
    "not yet": token(nbf=NOW + TOKEN_SECONDS),
    "issued in the future": token(iat=NOW + TOKEN_SECONDS),
    **{
        f"{claim} {value!r:.12}": signed(HEADER, claims(**{claim: value}))
        for claim in ("exp", "nbf", "iat")
        for value in ("soon", [], {}, 10**400, float("inf"), float("nan"))
    },
    "exp false": signed(HEADER, claims(exp=False)),
    "no subject": token(customer=None),
    **{
        f"subject {value!r:.12}": signed(HEADER, claims(customer=value))
        for value in (
            "",
            7,
            True,
            ["c-1"],
            {"a": 1},
            "c" * 65,
            "c\0",
            "c\n1",
            "c\x7f",
            "c\x85",
            "c\ud800",
            "c\u2028",
            "erased-0123456789abcdef",
            "c\u200b1",
            "c\u202e1",
            "c\ue000",
        )
    },  # fmt: skip
    **{
        f"typ {value!r}": signed(HEADER | {"typ": value}, claims())
        for value in ("JWE", "secevent+jwt", "dpop+jwt", "logout+jwt", "", 1, ["JWT"], {}, "JWT ", "id+jwt")
    },
    **{f"crit {value!r}": signed(HEADER | {"crit": value}, claims()) for value in (["exp"], ["x"], [], "b64", [1], {})},
    "crit b64": signed(HEADER | {"crit": ["b64"], "b64": False}, claims()),
    "b64": signed(HEADER | {"b64": False}, claims()),
    # not a token
    **{f"header {value!r}": signed(value, claims()) for value in (None, [], "JWT", 1, True, {}, b"{", b"\xff\xfe")},
    **{f"payload {value!r}": signed(HEADER, value) for value in (None, [], "c-1", 1, {}, b"", b"{", b"\xff", b"[[")},
    "payload too deep": signed(HEADER, b"[" * 2000),
    "header too deep": signed(b"[" * 2000, claims()),
    "header with objects too deep": signed(b'{"a":' * 500, claims()),
    "payload with two subjects": signed(HEADER, b'{"sub":"c-1","sub":2,"iss":"%s"}' % ISSUER.encode()),
    **{f"the first {n} characters": GOOD[:n] for n in (1, 10, len(HEAD), len(HEAD) + 1, len(GOOD) - 10, len(GOOD) - 2)},
    "without a signature": f"{HEAD}.{BODY}.",
    "without dots": GOOD.replace(".", ""),
    "a fourth part": GOOD + ".x",
    "five parts, encrypted": f"{encoded({'alg': 'dir', 'enc': 'A128GCM'})}.a.b.c.d",
    "another's body": f"{HEAD}.{encoded(claims(customer='c-2'))}.{SIGNATURE}",
    "another's header": f"{encoded(HEADER | {'kid': 'a'})}.{BODY}.{SIGNATURE}",
    "signature swapped": f"{HEAD}.{BODY}.{token(customer='c-2').split('.')[2]}",
    "signature reversed": f"{HEAD}.{BODY}.{SIGNATURE[::-1]}",
    "signature twice": GOOD + SIGNATURE,
    "JSON": json.dumps({"payload": BODY, "protected": HEAD, "signature": SIGNATURE}),
    "tab before": "\t" + GOOD,
    "blank within": GOOD.replace(".", ". "),
    "quoted": f'"{GOOD}"',
    "dots": "..",
    "many dots": "." * 4000,
    "4,097 characters": token(pad="a" * 3000)[:4097].ljust(4097, "a"),
    "huge": GOOD + "a" * 60_000,
    "unicode": "é.ü.ß",
    "percent signs": "%00.%0a.%ff",
}
