#!/usr/bin/env bash
# Installs the service with nginx and PostgreSQL on this Debian or Ubuntu machine. To upgrade the service, run the script
# again after `git pull`: it keeps /etc/order-service/environment, the database, and nginx's configuration.
set -euo pipefail
# cron and `su` without `-` leave out the directories of useradd, nginx and order-service.
export PATH="$PATH:/usr/local/bin:/usr/sbin:/sbin"
cd "$(dirname "$0")/.."
[ "$PWD" = /opt/order-service ] || { echo "Clone the repository to /opt/order-service first." >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "Run this as root." >&2; exit 1; }
umask 022

apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
  curl logrotate make nginx-light postgresql python3-venv >/dev/null
make --silent .venv/run.stamp
# The service cannot write to this directory, so each worker would compile the code again when it starts.
.venv/bin/python -m compileall -q ./*.py app migrations

id order-service >/dev/null 2>&1 || useradd --system --no-create-home --home-dir / --shell /usr/sbin/nologin order-service

# PostgreSQL identifies the service by its system user (peer authentication), so there is no password.
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env --chdir=/ "$@"; }
systemctl start postgresql
as_postgres psql -qtAc "SELECT 1 FROM pg_roles WHERE rolname = 'order-service'" | grep -q 1 ||
  as_postgres createuser order-service
as_postgres psql -qtAc "SELECT 1 FROM pg_database WHERE datname = 'orders'" | grep -q 1 ||
  as_postgres createdb --owner=order-service --encoding=UTF8 --template=template0 orders

mkdir -p /etc/order-service
[ -e /etc/order-service/environment ] || (
  umask 077
  cat >/etc/order-service/environment <<END
# Settings of the service; its README describes them. After a change: systemctl reload order-service, and
# systemctl restart order-service-worker.
DATABASE_URL=postgresql://order-service@/orders?host=/var/run/postgresql
WORKER_METRICS_PORT=9464
SECRET_KEY=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
END
)

install -m 755 deploy/systemd/order-service.sh /usr/local/bin/order-service
install -m 644 deploy/systemd/order-service*.service deploy/systemd/order-service.socket /etc/systemd/system/
for unit in nginx.service postgresql@.service; do
  install -D -m 644 deploy/systemd/restart.conf "/etc/systemd/system/$unit.d/restart.conf"
done
systemctl daemon-reload
systemctl restart order-service-migrate

[ -n "$(order-service api-keys list)" ] || {
  echo "The first API key for orders (for further ones: order-service api-keys --help):"
  order-service api-keys create --name first --scope orders:read --scope orders:write --scope orders:manage
}

systemctl enable --quiet order-service.socket order-service order-service-worker
systemctl start order-service.socket
systemctl reload-or-restart order-service   # loads new code without losing a request
systemctl restart order-service-worker

[ -e /etc/nginx/conf.d/order-service.conf ] || {
  # The service runs one worker per core.
  sed "s/max_conns=[0-9]*/max_conns=$((100 * $(nproc)))/" deploy/nginx.conf >/etc/nginx/conf.d/order-service.conf
  rm -f /etc/nginx/sites-enabled/default
}
nginx -t -q
systemctl enable --quiet --now nginx
systemctl reload nginx

curl --silent --fail --max-time 5 --retry 20 --retry-all-errors --retry-delay 1 http://127.0.0.1/readyz
echo
order-service doctor
