#!/bin/sh
# Runs a flask command as the service's user and with its settings, for example: order-service doctor
set -eu
cd /opt/order-service
# The file is parsed as systemd does: a shell would interpret & and $ in a URL.
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
