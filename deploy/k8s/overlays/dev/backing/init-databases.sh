#!/bin/sh
# One role and one database for each service that keeps any; run once, by the image's first start.
set -eu
for service in storage trainer; do
  password=$(cat "/run/secrets/postgres/$service-postgres-password")
  psql --username postgres --set ON_ERROR_STOP=1 --set password="$password" <<SQL
CREATE ROLE guidehall_$service LOGIN PASSWORD :'password';
CREATE DATABASE guidehall_$service OWNER guidehall_$service;
REVOKE ALL ON DATABASE guidehall_$service FROM PUBLIC;
SQL
done
