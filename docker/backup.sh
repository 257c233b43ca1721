#!/usr/bin/env bash
# Writes the three stores (MLflow's database and artifacts, Prefect's database, DVC's remote) into a
# new folder, while everything runs.   docker/backup.sh FOLDER
set -euo pipefail
folder=${1:?usage: docker/backup.sh FOLDER, for example ../glacier-backups/$(date +%F)}
compose() { docker compose --file "$(dirname "$0")/compose.yaml" "$@"; }
[ ! -e "$folder" ] || { echo "$folder: exists; a backup gets a folder of its own" >&2; exit 2; }
umask 077
part=$folder.part
rm -rf "$part"
mkdir -p "$part"
# Databases first: whatever they know of is in the archives that follow, never the other way round.
for name in mlflow prefect; do
  compose exec -T postgres pg_dump --username postgres --format custom "$name" > "$part/$name.dump"
  compose exec -T postgres pg_restore --list < "$part/$name.dump" > /dev/null
done
compose exec -T mlflow tar --directory /mlflow/artifacts --create . > "$part/mlflow-artifacts.tar"
compose exec -T worker tar --directory /dvc-remote --create . > "$part/dvc-remote.tar"
for name in mlflow-artifacts dvc-remote; do
  tar --list --file "$part/$name.tar" > /dev/null
done
(cd "$part" && sha256sum ./*.dump ./*.tar > SHA256SUMS)
mv "$part" "$folder"
du -sh "$folder"
