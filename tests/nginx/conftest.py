"""The real nginx with deploy/nginx.conf, and the real gunicorn behind it on a socket file, with PostgreSQL."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask

from tests.support.certificates import make_certificate
from tests.support.servers import GUNICORN, ROOT, Server, free_port, running

# The settings of a distribution's nginx.conf, but in one directory, so that any user can run it.
MAIN = """
daemon off;
worker_processes 2;
pid {directory}/pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log            {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path       {directory}/proxy;
    fastcgi_temp_path     {directory}/fastcgi;
    uwsgi_temp_path       {directory}/uwsgi;
    scgi_temp_path        {directory}/scgi;
    # A client of a test may have any address.
    set_real_ip_from 127.0.0.1;
    real_ip_header   X-Test-Address;
    include {directory}/order-service.conf;
}}
"""


def adapt(configuration: str, directory: Path, port: int, prefix: str) -> str:
    """The deployed file with the few changes that a user would make."""
    if prefix:
        path = r"^    location (= |~ \^|)/(?!\.problem)"
        configuration = re.sub(path, rf"    location \1{prefix}/", configuration, flags=re.MULTILINE)
        configuration = re.sub(r'(\$order_url_prefix \{\s+default  )""', rf'\1"{prefix}"', configuration)
    # rate: on a slow machine, 200 requests a second would never exceed the limit.
    # sndbuf: as to a distant client, the kernel does not take a whole response at once.
    for theirs, ours in {
        "/run/order-service": str(directory),
        "/var/log/nginx": str(directory),
        "listen 80 default_server": f"listen 127.0.0.1:{port} default_server sndbuf=64k",
        "listen [::]:80 default_server": f"listen [::1]:{port} default_server",
        '# "https://shop.example" ': '"https://shop.example" ',
        "rate=200r/s": "rate=1r/m",
    }.items():
        assert theirs in configuration
        configuration = configuration.replace(theirs, ours)
    return configuration


def over_tls(configuration: str, directory: Path, port: int) -> str:
    """The deployed file, changed as its last section says: TLS on `port`, and a server that redirects to it."""
    certificate, key = make_certificate(directory, "localhost")
    served, section = configuration.split("# --- TLS")
    directives, redirecting = re.sub("^# ?", "", section.partition("\n")[2], flags=re.MULTILINE).split("server {")
    served = re.sub(r"^    listen .*\n", "", served, flags=re.MULTILINE)
    served = served.replace("    server_name _;\n", f"    server_name _;\n{directives}")
    for theirs, ours in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "listen [::]:443 ssl": f"listen [::1]:{port} ssl",
        "/etc/ssl/order-service/fullchain.pem": str(certificate),
        "/etc/ssl/order-service/privkey.pem": str(key),
    }.items():
        assert theirs in served
        served = served.replace(theirs, ours)
    return f"{served}\nserver {{{redirecting}"


@contextmanager
def nginx_without_service(
    prefix: str = "",
    *,
    sockets: Sequence[str] = ("gunicorn.sock",),
    max_conns: int = 200,
    tls_port: int | None = None,
) -> Iterator[Server]:
    """nginx alone, in the directory of its process id file, where it expects gunicorn's sockets."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nginx-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)  # if nginx is started by root, its workers are another user
        site = (ROOT / "deploy" / "nginx.conf").read_text()
        if tls_port:
            site = over_tls(site, directory, tls_port)
        site = adapt(site, directory, port, prefix)
        for upstream in re.findall(r"^    server unix:.*\n", site, re.MULTILINE):
            site = site.replace(upstream, "".join(upstream.replace("gunicorn.sock", name) for name in sockets))
        site = site.replace("max_conns=200", f"max_conns={max_conns}")
        (directory / "order-service.conf").write_text(site)
        (directory / "nginx.conf").write_text(MAIN.format(directory=directory))
        program = shutil.which("nginx")
        assert program, "nginx is not installed: apt-get install nginx-light"
        command = (program, "-e", "stderr", "-p", name, "-c", f"{name}/nginx.conf")
        # nginx is ready when it responds that the service is not available, or with a prefix, that the path is unknown.
        with running(*command, port=port, status=308 if tls_port else 404 if prefix else 502) as server:
            yield server


@pytest.fixture(scope="session")
def database_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.fixture(scope="session")
def nginx() -> Iterator[Server]:
    with nginx_without_service() as server:
        yield server


@pytest.fixture(scope="module")
def service(nginx: Server, app: Flask, database_url: str) -> Iterator[Server]:
    """gunicorn, reached through nginx."""
    socket = f"{nginx.process.args[4]}/gunicorn.sock"
    with running(
        *GUNICORN,
        port=nginx.port,
        BIND=f"unix:{socket}",
        DATABASE_URL=database_url,
        WEB_CONCURRENCY="2",
        CORS_ORIGINS="https://shop.example",
    ) as server:
        yield server
