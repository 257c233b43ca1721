#!/bin/bash
# Roles and databases of MLflow and Prefect, made where they are missing; passwords are set to
# those of the secrets each time, which is how they are changed.
set -euo pipefail
for name in mlflow prefect; do
  variable="${name^^}_PASSWORD_FROM"
  PGPASSWORD=$(cat "$PGPASSWORD_FROM") DATABASE=$name PASSWORD_FILE=${!variable} \
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres <<'SQL'
-- Read here, not given with --set: command lines are seen by every user of a machine.
\set name `echo "$DATABASE"`
\set password `cat "$PASSWORD_FILE"`
SELECT format('CREATE ROLE %I LOGIN', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
  echo "database $name is ready"
done
