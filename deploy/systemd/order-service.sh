#!/bin/sh
# Run a command of the service as its user, with its settings: order-service doctor
set -eu
cd /opt/order-service
# Read as systemd does: a shell would take a & or a $ in a URL for its own.
while IFS= read -r line || [ -n "$line" ]; do
  case $line in
    [A-Za-z_]*=*) name=${line%%=*} value=${line#*=} ;;
    *) continue ;;
  esac
  case $value in
    \"*\" | \'*\') value=${value#?} value=${value%?} ;;
  esac
  export "$name=$value"
done </etc/order-service/environment
exec setpriv --reuid=order-service --regid=order-service --init-groups .venv/bin/python -m flask --app wsgi "$@"
