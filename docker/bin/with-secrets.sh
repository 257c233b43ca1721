#!/bin/sh
# Runs a command with secrets in its environment: NAME_FROM=file becomes NAME=what the file holds.
# So no secret stands in compose.yaml, on a command line, or in what `docker inspect` shows.
set -eu
for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)_FROM=.*/\1/p'); do
  file=$(printenv "${name}_FROM")
  if [ ! -r "$file" ] || [ ! -s "$file" ]; then
    echo "$file: no secret that user $(id -u) can read, needed for $name; run docker/secrets.sh" \
      "as the user who runs docker compose" >&2
    exit 2
  fi
  export "$name=$(cat "$file")"
done
exec "$@"
