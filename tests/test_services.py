"""docs/operations.md, step by step: the services of docker/compose.yaml as processes.

PostgreSQL is Debian's; `docker` is tests/compose.py, which reads commands, environments, secrets,
health checks and their order from compose.yaml. The scripts and the lines of the document run as
they are written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
from compose import POSTGRES_BIN
from services import Service, blocks, section, services

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.slow,
    pytest.mark.skipif(
        POSTGRES_BIN is None,
        reason="no PostgreSQL: apt-get install --no-install-recommends postgresql",
    ),
]
MODEL = "/api/2.0/mlflow/registered-models/alias?name=glacier-unet&alias=champion"


@pytest.fixture(scope="module")
def started() -> Iterator[Service]:
    with services() as service:
        yield service


@pytest.fixture(scope="module")
def trained(started: Service) -> tuple[Service, str]:
    """After the second block: a training through Prefect, and a map with its model."""
    return started, started.shell(blocks("Set-up")[1])


def test_every_service_is_healthy_by_its_own_check(started: Service) -> None:
    names = ["postgres", "mlflow", "prefect", "worker"]
    assert {name: started.stack.healthy(name) for name in names} == dict.fromkeys(names, True)


def test_secrets_are_seen_by_their_owner_alone_and_by_no_command_line(started: Service) -> None:
    files = list((started.folder / "docker/secrets").iterdir())
    assert len(files) == 7
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    status = subprocess.run(
        ["git", "status", "--porcelain", "docker"],
        cwd=started.folder, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert status == ""
    values = [file.read_text().split(":")[-1] for file in files]
    lines = []
    for name in ("postgres", "mlflow", "prefect", "worker"):
        process = started.stack.running(name)
        assert process is not None
        lines += [" ".join(p.cmdline()) for p in [process, *process.children(recursive=True)]]
    assert any("mlflow" in line for line in lines)
    assert not [line for line in lines if any(value in line for value in values)]


def test_nothing_listens_beyond_this_machine(started: Service) -> None:
    addresses = set()
    for name in ("postgres", "mlflow", "prefect", "worker"):
        process = started.stack.running(name)
        assert process is not None
        for one in [process, *process.children(recursive=True)]:
            # Servers start helpers that live for a moment: one may be gone by now.
            with contextlib.suppress(psutil.NoSuchProcess):
                addresses |= {c.laddr.ip for c in one.net_connections() if c.status == "LISTEN"}
    assert addresses == {"127.0.0.1"}


@pytest.mark.parametrize("user", ["", "worker:wrong", "admin:password1234"])
def test_mlflow_answers_nobody_it_does_not_know(started: Service, user: str) -> None:
    search = "/api/2.0/mlflow/experiments/search"
    assert started.ask(5000, search, user, max_results=5)[0] == 401
    assert started.ask(5000, "/api/2.0/mlflow-artifacts/artifacts", user)[0] == 401
    assert started.ask(5000, search, started.worker, max_results=5)[0] == 200


def test_mlflow_refuses_foreign_names_and_pages(started: Service) -> None:
    search = "/api/2.0/mlflow/experiments/search"
    foreign = [{"Host": "evil.example"}, {"Origin": "http://evil.example"}]
    answers = [
        started.ask(5000, search, started.worker, max_results=5, headers=header)[0]
        for header in foreign
    ]
    assert answers == [403, 403]


def test_prefect_answers_only_with_its_password(started: Service) -> None:
    path = "/api/work_pools/filter"
    assert started.ask(4200, path, limit=5)[0] == 401
    status, pools = started.ask(4200, path, started.secret("prefect_auth"), limit=5)
    assert (status, [pool["name"] for pool in pools]) == (200, ["glacier"])


def test_the_database_takes_only_the_right_password_and_keeps_roles_apart(
    started: Service,
) -> None:
    port = started.stack.ports[5432]

    def connect(role: str, password: str, database: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(POSTGRES_BIN / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", role,
             "-d", database, "-Atc", "select current_user"],
            env={"PGPASSWORD": password}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    mlflow = started.secret("mlflow_database_password")
    assert connect("mlflow", mlflow, "mlflow").stdout.strip() == "mlflow"
    assert "password authentication failed" in connect("mlflow", "wrong", "mlflow").stderr
    assert "permission denied" in connect("mlflow", mlflow, "prefect").stderr


def test_the_flow_ends_completed_and_its_runs_lie_in_postgresql(
    trained: tuple[Service, str],
) -> None:
    service, said = trained
    assert "finished successfully in 'Completed'" in said
    count = "select count(*) from {} where {}"
    assert service.sql("prefect", count.format("flow_run", "state_type = 'COMPLETED'")) == "1"
    assert int(service.sql("mlflow", count.format("runs", "status = 'FINISHED'"))) >= 1


def test_the_model_is_registered_with_its_artifacts_through_the_proxy(
    trained: tuple[Service, str],
) -> None:
    service, _ = trained
    status, answer = service.ask(5000, MODEL, service.worker)
    assert (status, answer["model_version"]["version"]) == (200, "1")
    name = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=glacier"
    place = service.ask(5000, name, service.worker)[1]["experiment"]["artifact_location"]
    assert place.startswith("mlflow-artifacts:/")
    stored = service.stack.base / "volumes/mlflow-artifacts"
    assert list(stored.rglob("model.safetensors"))
    assert not (service.folder / "mlartifacts").exists()
    assert not (service.folder / "mlflow.db").exists()


def test_a_scene_is_mapped_with_the_registered_champion(trained: tuple[Service, str]) -> None:
    service, _ = trained
    [about] = (service.folder / "data/mapped/maps").glob("*/map.json")
    assert json.loads(about.read_text())["models"] == ["models:/glacier-unet/1"]


def test_people_change_what_the_worker_made_only_when_they_may_train(
    trained: tuple[Service, str],
) -> None:
    service, _ = trained
    password = service.folder / "docker/secrets/analyst"
    password.write_text("correct horse battery")
    analyst = f"analyst:{password.read_text()}"
    add = (
        f"docker compose run --rm setup python /opt/glacier/docker/bin/users.py analyst "
        f"--password-file {password}"
    )

    def statuses() -> list[int]:
        run = {"experiment_id": "1", "start_time": 1}
        version = {"name": "glacier-unet", "version": "1", "key": "seen_by", "value": "analyst"}
        return [
            service.ask(5000, MODEL, analyst)[0],
            service.ask(5000, "/api/2.0/mlflow/runs/create", analyst, **run)[0],
            service.ask(5000, "/api/2.0/mlflow/model-versions/set-tag", analyst, **version)[0],
        ]

    assert "user analyst made" in service.shell(add)
    assert statuses() == [200, 403, 403]
    assert "may add runs" in service.shell(f"{add} --trains")
    assert statuses() == [200, 200, 200]
    # An administrator's own, too.
    said = service.shell(add.replace("users.py analyst", "users.py admin"))
    assert "user admin exists; password set" in said
    assert service.ask(5000, MODEL, f"admin:{password.read_text()}")[0] == 200
    former = service.folder / "docker/secrets/mlflow_admin_password"
    former.rename(former.with_name("former"))
    password.rename(former)
    again = "python /opt/glacier/docker/bin/users.py admin --password-file"
    service.shell(f"docker compose run --rm setup {again} {former.with_name('former')}")
    former.with_name("former").rename(former)


def test_starting_again_changes_nothing(trained: tuple[Service, str]) -> None:
    service, _ = trained
    users = service.sql(
        "mlflow", "select username, password_hash from users where username='admin'"
    )
    said = service.shell(
        "docker/secrets.sh; docker compose restart mlflow worker; docker compose run --rm databases"
    )
    assert "is new" not in said
    assert "user worker exists" in said
    service.stack.wait("mlflow")
    assert service.ask(5000, MODEL, service.worker)[0] == 200
    again = service.sql(
        "mlflow", "select username, password_hash from users where username='admin'"
    )
    assert again == users


def test_everything_comes_back_by_itself_when_the_database_does(
    trained: tuple[Service, str],
) -> None:
    service, _ = trained
    service.shell("docker compose restart postgres")
    auth = service.secret("prefect_auth")
    for _ in range(60):
        service.stack.revive()
        answers = (
            service.ask(5000, MODEL, service.worker)[0],
            service.ask(4200, "/api/flow_runs/filter", auth, limit=1)[0],
            service.stack.healthy("worker"),
        )
        if answers == (200, 200, True):
            break
        time.sleep(1)
    assert answers == (200, 200, True)


def test_the_schemas_are_upgraded_with_the_commands_of_the_document(
    trained: tuple[Service, str],
) -> None:
    service, _ = trained
    lines = [line.strip() for line in section("Upgrade").splitlines() if "db upgrade" in line]
    assert len(lines) == 2
    service.shell("\n".join(["docker compose stop worker prefect mlflow", *lines]))
    service.shell("docker compose up --detach")
    assert service.ask(5000, MODEL, service.worker)[0] == 200


def test_what_was_lost_is_restored_from_the_backup(trained: tuple[Service, str]) -> None:
    service, _ = trained
    [backup], [restore] = blocks("Backup"), blocks("Restore")
    service.shell(backup)
    names = sorted(
        path.name for path in (service.folder.parent / "glacier-backups/latest").iterdir()
    )
    assert names == sorted(
        ["mlflow.dump", "prefect.dump", "mlflow-artifacts.tar", "dvc-remote.tar", "SHA256SUMS"]
    )
    # Everything is lost: both databases, the artifacts, DVC's remote and its cache.
    service.shell("docker compose stop worker prefect mlflow")
    for name in ("mlflow", "prefect"):
        service.sql("postgres", f"drop database {name} with (force)")
        service.sql("postgres", f"drop role {name}")
    for lost in ("mlflow-artifacts", "dvc-remote"):
        shutil.rmtree(service.stack.base / "volumes" / lost)
    shutil.rmtree(service.folder / ".dvc/cache")
    shutil.rmtree(service.folder / "data/runs")

    service.shell(restore)

    service.stack.wait("worker")
    assert service.ask(5000, MODEL, service.worker)[0] == 200
    assert (
        service.sql("prefect", "select count(*) from flow_run where state_type='COMPLETED'") == "1"
    )
    assert list(service.folder.glob("data/runs/unet/models/model.safetensors"))
    shutil.rmtree(service.folder / "data/mapped")
    training, mapping = blocks("Set-up")[1].split("\n", 1)
    service.shell(mapping)
    assert list((service.folder / "data/mapped/maps").glob("*/*_classes.tif"))
    assert "finished successfully in 'Completed'" in service.shell(training)
    versions = "select count(*) from model_versions where name='glacier-unet'"
    assert service.sql("mlflow", versions) == "1"


def test_a_damaged_backup_replaces_nothing(trained: tuple[Service, str]) -> None:
    service, _ = trained
    damaged = service.folder.parent / "glacier-backups/damaged"
    service.shell(f"docker/backup.sh {damaged}")
    with (damaged / "mlflow.dump").open("r+b") as file:
        file.seek(200)
        file.write(b"\0\0\0\0")
    service.shell(f"docker/restore.sh {damaged}", code=2)
    said = service.shell(f"docker/restore.sh {damaged} --replace", code=1)
    assert "mlflow.dump: FAILED" in said
    assert service.stack.running("mlflow")
    assert service.ask(5000, MODEL, service.worker)[0] == 200
    assert service.shell(f"docker/backup.sh {damaged}", code=2).count("exists") == 1
