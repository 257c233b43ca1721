#!/usr/bin/env bash
# Replaces the three stores by those of a folder that docker/backup.sh wrote, on this machine or on
# a new one.   docker/restore.sh FOLDER --replace
set -euo pipefail
folder=${1:?usage: docker/restore.sh FOLDER --replace}
[ "${2:-}" = --replace ] || { echo "what is stored now will be lost; say --replace" >&2; exit 2; }
compose() { docker compose --file "$(dirname "$0")/compose.yaml" "$@"; }
# Before anything is dropped.
(cd "$folder" && sha256sum --check --quiet SHA256SUMS)
compose stop worker prefect mlflow
# PostgreSQL, with the roles of this machine's secrets.
compose run --rm -T databases
for name in mlflow prefect; do
  compose exec -T postgres dropdb --username postgres --force "$name"
  compose exec -T postgres createdb --username postgres --owner "$name" "$name"
  compose exec -T postgres pg_restore --username postgres --exit-on-error --single-transaction \
    --dbname "$name" < "$folder/$name.dump"
done
# Files that no database knows of any more stay; they take room, and harm nobody.
compose run --rm -T --no-deps mlflow tar --directory /mlflow/artifacts --extract \
  < "$folder/mlflow-artifacts.tar"
compose run --rm -T --no-deps worker tar --directory /dvc-remote --extract \
  < "$folder/dvc-remote.tar"
compose up --detach
echo "restored from $folder; users of MLflow have the passwords that they had then"
