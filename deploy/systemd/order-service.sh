#!/bin/sh
# Run a command of the service as its user, with its settings: order-service doctor
set -eu
cd /opt/order-service
set -a
. /etc/order-service/environment
set +a
exec setpriv --reuid=order-service --regid=order-service --init-groups .venv/bin/python -m flask --app wsgi "$@"
