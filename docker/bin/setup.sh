#!/bin/sh
# What the worker needs, made where it is missing: its user in MLflow, the work pool, the
# deployments of the project's prefect.yaml, what ends silent runs, and a place for `dvc push`.
# Runs at each start.
set -eu
here=$(dirname "$0")
python "$here/users.py" "$WORKER_NAME" --password-file "$WORKER_PASSWORD_FILE"
prefect work-pool create glacier --type process --overwrite
prefect --no-prompt deploy --all
python -m flows.unattended
# In .dvc/config.local, which git ignores: another clone keeps its own place.
if [ -z "$(dvc config core.remote || true)" ]; then
  dvc remote add --local --default glacier "$DVC_REMOTE"
fi
echo "ready: pool, deployments, MLflow's user $WORKER_NAME, DVC's remote $(dvc config core.remote)"
