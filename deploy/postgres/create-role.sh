#!/bin/sh
# The image runs this once, when it sets up the database: the service gets a role that owns its database and may do
# nothing else. The superuser has no password afterwards, so it can be used inside the container only.
set -eu
psql --username "$POSTGRES_USER" --dbname postgres --no-psqlrc --set ON_ERROR_STOP=1 --set password="$POSTGRES_PASSWORD" \
  --set superuser="$POSTGRES_USER" <<'SQL'
CREATE ROLE orders LOGIN PASSWORD :'password';
CREATE DATABASE orders OWNER orders ENCODING 'UTF8' TEMPLATE template0;
ALTER ROLE :"superuser" PASSWORD NULL;
SQL
