"""Webhooks are sent to public addresses only: hostile URLs are refused, at their creation and at each delivery."""

from collections.abc import Iterator, Sequence

import gevent
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from app.models.webhook import RefusedURL, check_addresses, parse_webhook_url
from app.services import webhook_service
from app.services.webhook_delivery import WebhookSender
from app.services.webhook_service import resolve_host
from tests.support.marks import on_sqlite
from tests.support.samples import slug
from tests.support.webhooks import PUBLIC_ADDRESS, resolve_to, webhook_rules, webhook_sender

# Loopback, private and reserved addresses, each in all notations of a URL.
IPV4 = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 127.0.0.1 127.1.2.3 127.255.255.254 168.63.129.16
    169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1
    192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
    255.255.255.255
""".split()
IPV6 = """
    :: ::1 ::2 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:8.8.8.8 ::ffff:0:8.8.8.8 64:ff9b::7f00:1
    64:ff9b::8.8.8.8 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:0:7f00:1:: 2001:2::1 2001:10::1 2001:20::1
    2001:db8::1 2002:7f00:1:: 2002:a00:1::1 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00::1 fd00:ec2::254 fe80::1
    fec0::1 fe80::a9fe:a9fe ff02::1 ff0e::1 4000::1
""".split()
OTHER_NOTATIONS = """
    127.1 127.0.1 127.0.0.1. 127.0.0.0x1 127.0.0.01 0177.0.0.1 017700000001 00000177.1 2130706433 02130706433 0x7f000001
    0x7F.1 0x7f.0x0.0x0.0x1 0x7f.0.0.1 0x0000000007f.0.0.1 3232235521 0xa9fea9fe 2852039166 0251.0376.0251.0376
    0xa9.254.0251.254 169.254.43518 10.1 0 0x 0x0 1 256.256.256.256 1.2.3.4.5 127.0.0.1.1 4294967295 4294967296
    ①②⑦.⓪.⓪.① １２７.０.０.１ 127。0。0。1 127．0．0．1 127｡0｡0｡1 ⅰ.example.com
""".split()
NAMES = """
    localhost LOCALHOST localhost. localhost.localdomain foo.localhost a.b.localhost ip6-localhost broadcasthost
    metadata metadata.google.internal instance-data kubernetes.default.svc.cluster.local printer.local router.lan
    nas.home host.docker.internal gateway.docker.internal db.internal db.corp www.intranet x.private x.home.arpa x.onion
    x.test x.example x.invalid 1.0.0.127.in-addr.arpa x.ip6.arpa x.alt ⓛocalhost lоcalhost loсalhost.com .example.com
    example..com -a.com a-.com a_b.com example.com. a.com%00.b.com a%2ecom xn--.com- a.com,b.com *.example.com
""".split()
LITERALS = [
    "https://user@93.184.215.14/", "https://user:password@hooks.shop.com/", "https://@hooks.shop.com/",
    "https://hooks.shop.com@127.0.0.1/", "https://127.0.0.1@hooks.shop.com/", "https://hooks.shop.com:443@127.0.0.1/",
    "https://127.0.0.1\\@hooks.shop.com/", "https://hooks.shop.com\\@127.0.0.1/", "https://hooks.shop.com\\.evil.com/",
    "https://hooks.shop.com#@127.0.0.1/", "https://hooks.shop.com/#fragment", "https://hooks.shop.com%40127.0.0.1/",
    "https://hooks.shop.com%23@127.0.0.1/", "https://[::1%25eth0]/", "https://[::1%eth0]/", "https://[fe80::1%25lo]/",
    "https://[fe80::1%lo]/", "https://[::1", "https://::1/", "https://[127.0.0.1]/", "https://[::]]/", "https://[]/",
    "https://[v1.a]/", "https://[::1]93.184.215.14/", "https://93.184.215.14[::1]/", "https://[2606:4700::1111]x/",
    "http://hooks.shop.com/", "ftp://hooks.shop.com/", "file:///etc/passwd", "gopher://hooks.shop.com/", "dict://a.com/",
    "ldap://hooks.shop.com/", "data:text/plain,x", "javascript:alert(1)", "unix:///run/docker.sock",
    "//hooks.shop.com/", "https:hooks.shop.com", "https:/hooks.shop.com/",
    "https:///hooks.shop.com/", "https:\\\\hooks.shop.com\\",
    "https//hooks.shop.com/", "hooks.shop.com", "https://", "https:///", "HTTPS://hooks.shop.com/", "https+unix://a/",
    "https://hooks.shop.com:0/", "https://hooks.shop.com:22/", "https://hooks.shop.com:25/", "https://hooks.shop.com:80/",
    "https://hooks.shop.com:1023/", "https://hooks.shop.com:65536/", "https://hooks.shop.com:99999/",
    "https://hooks.shop.com:-1/", "https://hooks.shop.com:/", "https://hooks.shop.com:0443/", "https://a.com:4 43/",
    "https://hooks.shop.com:443:443/", "https://hooks.shop.com:https/", "https://hooks.shop.com:４４３/",
    "https://hooks.shop.com/ HTTP/1.1", "https://hooks.shop.com/\r\nHost: 127.0.0.1", "https://hooks.shop.com/\n",
    "https://hooks.shop.com/\t", "https://hooks.shop.com\t/", "https://hooks\t.shop.com/", "https://hooks.shop.com/\0",
    "https://hooks.shop.com\0.evil.com/", " https://hooks.shop.com/", "https://hooks.shop.com/ ", "\ufeffhttps://a.com/",
    "https://hooks.shop.com/\x7f", "https://hooks.shop.com/é", "https://hooks.shop.com/%", "https://hooks.shop.com/%zz",
    'https://hooks.shop.com/"', "https://hooks.shop.com/<", "https://hooks.shop.com/{a}", "https://hooks.shop.com/^|`",
    "https://hooks.shop.com/\\..\\", "https://hooks.shop.com\u2028/", "https://hooks\u00ad.shop.com/",
    "https://hooks\u200b.shop.com/", "https://hooks.shop.com\uff0f@127.0.0.1/", "https://hooks.shop.com\u2100.com/",
    "https://ﬀ.com/", "https://shop.com:443\u2049/", "https://\u202ehooks.shop.com/",
    f"https://{'a' * 64}.com/", f"https://{'a.' * 127}com/",
]  # fmt: skip
HOSTILE = [
    *(f"https://{address}/" for address in IPV4),
    *(f"https://[{address}]/" for address in IPV6),
    *(f"https://{host}/hook" for host in (*OTHER_NOTATIONS, *NAMES)),
    *LITERALS,
]
each_hostile_url = pytest.mark.parametrize("url", HOSTILE, ids=ascii)


def never_resolve(host: str, _port: int) -> Sequence[str]:
    """A resolver for URLs that are refused before their host is resolved, unless it is an address."""
    return resolve_host(host, 443) if host[0].isdigit() or ":" in host else [PUBLIC_ADDRESS]


def test_the_table_has_many_different_urls() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 150


@pytest.fixture(scope="module")
def sender() -> Iterator[WebhookSender]:
    sender = webhook_sender(allow_private=False, resolve=never_resolve)
    yield sender
    sender.close()


@on_sqlite
@each_hostile_url
def test_a_hostile_url_is_refused_when_a_webhook_is_created(app: Flask, client: FlaskClient, url: str) -> None:
    with webhook_rules(app, allow_private=False, resolve=never_resolve):
        response = client.post("/webhooks", json={"url": url})

    assert slug(response) == (400, "invalid-request")
    assert {error["pointer"] for error in response.json["errors"]} == {"#/url"}


@each_hostile_url
def test_a_hostile_url_is_refused_when_a_webhook_is_delivered(sender: WebhookSender, url: str) -> None:
    attempt = sender.send(url, b"{}", {})

    assert (attempt.status, attempt.response) == (None, None)
    assert attempt.error is not None and attempt.error.startswith("Not sent: ")


@pytest.mark.parametrize("address", [*IPV4, *IPV6, "fe80::1%eth0", "127.1", "", "localhost"])
@pytest.mark.parametrize("others", [[], [PUBLIC_ADDRESS], ["2606:4700:4700::1111"]])
def test_a_name_with_one_address_that_is_not_public_is_refused(address: str, others: list[str]) -> None:
    for addresses in ([address, *others], [*others, address]):
        sender = webhook_sender(allow_private=False, resolve=resolve_to(*addresses))

        attempt = sender.send("https://hooks.shop.com/", b"{}", {})

        assert attempt.error == "Not sent: The host must have public addresses only."


def test_a_name_without_an_address_is_refused() -> None:
    with pytest.raises(RefusedURL, match="has no address"):
        check_addresses([], allow_private=True)


@pytest.mark.parametrize(
    ("url", "netloc", "target"),
    [
        ("https://hooks.shop.com", "hooks.shop.com", "/"), ("https://Hooks.Shop.COM:443/a", "hooks.shop.com", "/a"),
        ("https://hooks.shop.com:8443/a/b?c=d&e=%2F", "hooks.shop.com:8443", "/a/b?c=d&e=%2F"),
        ("https://hooks.shop.com?a=@b:c/", "hooks.shop.com", "/?a=@b:c/"),
        ("https://xn--bcher-kva.com/", "xn--bcher-kva.com", "/"), ("https://1.1.1.1/", "1.1.1.1", "/"),
        ("https://[2606:4700:4700::1111]/", "[2606:4700:4700::1111]", "/"),
        ("https://[2606:4700:4700:0::1111]:8443/", "[2606:4700:4700::1111]:8443", "/"),
        ("https://a.b.c.d.e.co/~x/(y);z=1,2!$'*+", "a.b.c.d.e.co", "/~x/(y);z=1,2!$'*+"),
        ("https://hooks.shop.com:65535/", "hooks.shop.com:65535", "/"), ("https://3com.com/", "3com.com", "/"),
        ("https://localhost.com/", "localhost.com", "/"), ("https://example.com/", "example.com", "/"),
    ],
)  # fmt: skip
def test_a_public_url_is_accepted(url: str, netloc: str, target: str) -> None:
    parsed = parse_webhook_url(url, allow_private=False)

    assert (parsed.netloc, parsed.target) == (netloc, target)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:3000/hook", "http://localhost/", "http://[::1]:80/", "http://receiver:80/", "http://10.1.2.3/",
     "https://192.168.0.2:1000/", "http://[fd00::1]/"],
)  # fmt: skip
def test_for_development_loopback_and_private_addresses_are_accepted(url: str) -> None:
    parse_webhook_url(url, allow_private=True)


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest/", "http://[fe80::1]/", "http://0.0.0.0/", "http://[::]/", "http://224.0.0.1/",
     "http://100.64.0.1/", "http://[fd00:ec2::254]/", "http://[fd20:ce::254]/", "http://[fd00:c1::a9fe:a9fe]/",
     "http://2130706433/", "http://user@localhost/", "ftp://localhost/", "http://localhost:0/"],
)  # fmt: skip
def test_for_development_all_other_rules_still_apply(url: str) -> None:
    with pytest.raises(RefusedURL):
        parse_webhook_url(url, allow_private=True)


@given(st.text(max_size=80) | st.from_regex(r"https://[^/]{1,30}(/.*)?", fullmatch=True))
def test_every_parsed_host_is_a_name_or_a_public_address(text: str) -> None:
    try:
        parsed = parse_webhook_url(text, allow_private=False)
    except RefusedURL:
        return
    assert parsed.scheme == "https" and text.isascii() and "@" not in text.split("/")[2].split("?")[0]
    assert parsed.host.replace("-", "").replace(".", "").replace(":", "").isalnum()


def test_a_request_does_not_wait_for_a_name_server_that_does_not_respond(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(_host: str, _port: int) -> Sequence[str]:
        gevent.sleep(5)
        return [PUBLIC_ADDRESS]

    monkeypatch.setattr(webhook_service, "RESOLVE_SECONDS", 0.1)
    with webhook_rules(app, allow_private=False, resolve=wait):
        refused = client.post("/webhooks", json={"url": "https://hooks.shop.com/"})

    assert refused.status_code == 400
    assert refused.json["errors"] == [{"pointer": "#/url", "detail": "The host name cannot be resolved."}]


def test_a_name_that_becomes_private_after_its_webhook_was_created_is_refused(app: Flask, client: FlaskClient) -> None:
    answers = iter([[PUBLIC_ADDRESS], ["127.0.0.1"], ["10.0.0.1"], [PUBLIC_ADDRESS, "169.254.169.254"]])

    def flip(_host: str, _port: int) -> Sequence[str]:
        return next(answers)

    with webhook_rules(app, allow_private=False, resolve=flip):
        created = client.post("/webhooks", json={"url": "https://hooks.shop.com/"})
    sender = webhook_sender(allow_private=False, resolve=flip)
    attempts = [sender.send("https://hooks.shop.com/", b"{}", {}) for _ in range(3)]

    assert created.status_code == 201
    assert {attempt.error for attempt in attempts} == {"Not sent: The host must have public addresses only."}
