"""Which URLs and addresses webhooks may be sent to: protection against server-side request forgery (SSRF).

The grammar is far narrower than a URL's: what parsers read differently, such as user names, backslashes, numbers in
other notations than dotted decimal, or characters beyond ASCII, is refused instead of interpreted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

# RFC 3986 without user name and fragment, in ASCII.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<target>[/?][!$-;=?-Z_a-z~]*)?"
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME_MAX = 253  # characters of a host name (RFC 1035 §2.3.4)
_NOT_AN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_UNPRIVILEGED_PORT = 1024  # ports below it are those of mail, SSH, DNS and other protocols

# Names that never resolve to a host on the public internet: RFC 6761, RFC 6762, RFC 7686, RFC 8375, RFC 9476, ICANN's
# .internal, and those that clouds give to their metadata services.
_PRIVATE_DOMAINS = (
    "localhost", "localdomain", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa",
    "in-addr.arpa", "ip6.arpa", "onion", "alt", "test", "invalid", "example",
)  # fmt: skip

# Beyond what `is_global` of the standard library refuses: its list depends on the version of Python.
# https://www.iana.org/assignments/iana-ipv4-special-registry, …/iana-ipv6-special-registry
_REFUSED_NETWORKS = [
    ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's platform, which answers inside every virtual network
        "2001::/23",  # Teredo, ORCHID and other protocols' own addresses
        "2001:db8::/32", "2002::/16", "3fff::/20",
    )
]  # fmt: skip
# All unicast addresses of the internet. Outside are loopback, link-local, private and multicast addresses, and those
# that contain an IPv4 address: mapped, compatible, NAT64.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_PRIVATE_NETWORKS = [ip_network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]
# Among them, the metadata services of AWS, Google Cloud and Oracle Cloud.
_METADATA_NETWORKS = [ip_network(network) for network in ("fd00:ec2::/32", "fd20:ce::/32", "fd00:c1::/32")]


class RefusedURL(ValueError):
    """The URL or one of its addresses is refused. The message says what is allowed."""


@dataclass(frozen=True, slots=True)
class WebhookURL:
    """A URL that `parse_webhook_url` accepts. `host` is a name in lower case or an address, without brackets.

    `target` is the path with the query. `netloc` is the host as the Host header names it (RFC 9110 §7.2).
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_webhook_url(text: str, *, allow_private: bool) -> WebhookURL:
    """Parse the URL of an endpoint. Raises RefusedURL.

    It is https, without user name and fragment, with a port of 443 or at least 1024. Its host is a domain name in
    ASCII or a public address. With `allow_private`, which is for development, also http, any port, loopback and private
    addresses, and names without a dot.
    """
    match = _URL.fullmatch(text)
    if match is None or _NOT_AN_ESCAPE.search(text):
        schemes = "http:// or https://" if allow_private else "https://"
        raise RefusedURL(
            f"This must be an {schemes} URL in ASCII with a host name, without user name, password and fragment; "
            "international domain names in their xn-- form."
        )
    scheme = match["scheme"]
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if scheme == "http" and not allow_private:
        raise RefusedURL("This must be an https:// URL.")
    if port > 65_535 or not (allow_private or port == 443 or port >= _FIRST_UNPRIVILEGED_PORT):
        raise RefusedURL("The port must be 443, or from 1024 to 65535.")
    host = _literal_address(match["host"])
    if host is not None:
        check_addresses([host], allow_private=allow_private)
    else:
        host = match["host"].lower()
        _check_name(host, allow_private=allow_private)
    target = match["target"] or "/"
    return WebhookURL(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _literal_address(host: str) -> str | None:
    """The address that the host of a URL is, or None for a name. Raises RefusedURL for another notation of one.

    A name whose last part is a number is an IPv4 address for browsers and for the C library: 127.1, 0x7f000001, 017…
    (https://url.spec.whatwg.org/#concept-ipv4-parser).
    """
    bare = host.strip("[]")
    try:
        address = IPv6Address(bare) if host.startswith("[") else IPv4Address(bare)
    except ValueError:
        last = bare.removesuffix(".").rpartition(".")[2].lower()
        if host.startswith("[") or last.isdigit() or re.fullmatch("0x[0-9a-f]*", last):
            raise RefusedURL("The host is not an address: write IPv4 as four decimal numbers.") from None
        return None
    return str(address)


def _check_name(name: str, *, allow_private: bool) -> None:
    labels = name.split(".")
    if len(name) > _NAME_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise RefusedURL("The host is not a domain name: labels of letters, digits and hyphens, separated by dots.")
    if allow_private:
        return
    if len(labels) == 1 or name.endswith(tuple(f".{domain}" for domain in _PRIVATE_DOMAINS)):
        raise RefusedURL("The host must be a name in the public domain name system.")


def check_addresses(addresses: Sequence[str], *, allow_private: bool) -> None:
    """Raise RefusedURL unless there are addresses and all of them are public unicast addresses of the internet.

    One address that is not is enough: a name with a public and a private one leads to either. With `allow_private`,
    also loopback and private addresses (RFC 1918, RFC 4193), but no others: cloud metadata stays out of reach.
    """
    if not addresses:
        raise RefusedURL("The host name has no address.")
    if not all(_is_allowed(address, allow_private=allow_private) for address in addresses):
        raise RefusedURL("The host must have public addresses only.")


def _is_allowed(text: str, *, allow_private: bool) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if any(address in network for network in _METADATA_NETWORKS):
        return False
    if allow_private and (address.is_loopback or any(address in network for network in _PRIVATE_NETWORKS)):
        return True
    if isinstance(address, IPv6Address) and (address.scope_id or address not in _GLOBAL_UNICAST):
        return False
    return address.is_global and not any(address in network for network in _REFUSED_NETWORKS)
