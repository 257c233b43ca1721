#!/usr/bin/env bash
# Makes the secrets that compose.yaml needs, random ones, where they are missing: docker/secrets/
# (mode 600, ignored by git), and docker/.env with the ids of the user that may read them.
#   docker/secrets.sh [FOLDER]
set -euo pipefail
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
random() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
write() {
  if [ -s "$folder/$1" ]; then
    echo "$folder/$1 is kept"
  else
    printf '%s' "$2" > "$folder/$1"
    echo "$folder/$1 is new"
  fi
}
for name in postgres_password mlflow_database_password prefect_database_password \
  mlflow_admin_password mlflow_worker_password mlflow_secret_key; do
  write "$name" "$(random)"
done
# User and password in one, as Prefect wants it.
write prefect_auth "glacier:$(random)"
# Containers run with the ids of who owns these files; root's would be as good as no user at all.
uid=$(id -u) gid=$(id -g)
if [ "$uid" = 0 ]; then
  uid=1000 gid=1000
  chown -R "$uid:$gid" "$folder"
fi
if [ -z "${1:-}" ] && [ ! -e "$(dirname "$0")/.env" ]; then
  printf 'GLACIER_UID=%s\nGLACIER_GID=%s\n' "$uid" "$gid" > "$(dirname "$0")/.env"
  echo "$(dirname "$0")/.env: containers run as $uid:$gid"
fi
