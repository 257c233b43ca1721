"""Scenes side by side on Dask: a local cluster, a scheduler by address, and workers that die."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from conftest import REPOSITORY, copy_settings, edit_yaml, make_scene
from prefect_server import Prefect, serving, wait_for
from small_catalog import offer, settings
from stac_server import StacServer
from test_mapping import CHANNELS, noise, save_far_sighted

from flows.side_by_side import DASK, dask_wanted, worker_environment
from glacier_core.errors import InputError, ServiceError
from glacier_core.landsat.quality import TABLE
from glacier_core.threads import THREADS

SCENES = [f"S{k}_20001025" for k in range(3)]


# --- what is asked for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("", None), ("local:2", 2), ("tcp://10.0.0.7:8786", "tcp://10.0.0.7:8786"),
     ("tls://dask.example.org:8786", "tls://dask.example.org:8786")],
)  # fmt: skip
def test_the_environment_says_where_scenes_are_worked_on(
    value: str, wanted: int | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DASK, value)
    assert dask_wanted() == wanted


@pytest.mark.parametrize("value", ["local", "local:0", "local:two", "8786", "http://host:8786", "tcp://host"])  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_what_can(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DASK, value)
    with pytest.raises(InputError, match=rf"^{DASK}={value}: expected local:N .* tcp://HOST:PORT"):
        dask_wanted()


def test_a_run_takes_what_the_environment_says_then(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cluster import ClusterRunner
    from flows.landsat import landsat
    from flows.maps import glacier_map

    runners = glacier_map.task_runner, landsat.task_runner
    monkeypatch.setenv(DASK, "")
    assert [runner.duplicate()._max_workers for runner in runners] == [2, 1]
    monkeypatch.setenv(DASK, "tcp://10.0.0.7:8786")
    for runner in runners:
        there = runner.duplicate()
        assert isinstance(there, ClusterRunner)
        assert there.address == "tcp://10.0.0.7:8786"


def test_the_flow_refuses_as_bad_input_what_cannot_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.maps import glacier_map
    from flows.stages import BadInput

    monkeypatch.setenv(DASK, "local")
    glacier_map.task_runner.duplicate()  # or Prefect would call the run crashed, and not say why
    with pytest.raises(BadInput, match="GLACIER_DASK=local: expected local:N"):
        glacier_map.fn([], root=str(tmp_path))


def test_without_dask_installed_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    monkeypatch.setenv(DASK, "")
    assert dask_wanted() is None
    monkeypatch.setenv(DASK, "local:2")
    with pytest.raises(InputError, match=r"not installed .*pip install .*\.\[dask\]"):
        dask_wanted()


def test_workers_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv(THREADS, raising=False)
    assert worker_environment(2)["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert worker_environment(2 * cores)[THREADS] == "1"
    monkeypatch.setenv(THREADS, "3")
    said = worker_environment(2)
    assert (said[THREADS], said["OMP_NUM_THREADS"], said[DASK]) == ("3", "3", "")


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    import dask

    from flows.cluster import ClusterRunner

    runner = ClusterRunner.of("tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        runner,
        pytest.raises(ServiceError, match=r"^GLACIER_DASK=tcp://127.0.0.1:9: no Dask scheduler"),
    ):
        _ = runner.client


@pytest.mark.slow
def test_what_is_done_stays_when_its_worker_dies_and_what_kills_workers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import dask
    from prefect.states import Completed

    from flows.cluster import ClusterRunner, KeptFuture, Places

    def threads() -> tuple[int, str | None]:
        import torch

        return torch.get_num_threads(), os.environ.get(DASK)

    # Torch takes no more than there are cores; Dask by itself leaves it one.
    wanted = min(2, len(os.sched_getaffinity(0)))
    monkeypatch.setenv(THREADS, str(wanted))
    monkeypatch.setenv(DASK, "local:1")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        ClusterRunner.of(1) as runner,
    ):
        assert list(runner.client.run(threads).values()) == [(wanted, "")]
        done = KeptFuture(runner.client.submit(Completed), uuid4(), uuid4(), Places())
        done.wait(60)
        fatal = KeptFuture(runner.client.submit(os._exit, 1), uuid4(), uuid4(), Places())
        fatal.wait(60)
        assert fatal.state.is_crashed()
        assert "given up, as 2 workers died with it" in str(fatal.state.message)
        assert done.state.is_completed()
        # Nothing is left that Dask would make once more.
        wait_for(lambda: not runner.client.futures, "Dask forgets what was kept", seconds=5)


# --- flows -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    base = tmp_path_factory.mktemp("prefect")
    with serving(base, GLACIER_DASK="local:2") as server:
        server.heed_events(False)
        server.work()
        yield server


def begin(prefect: Prefect, deployment: str, dask: str, **parameters: Any) -> str:
    """Have a deployment run with a setting of GLACIER_DASK of its own; the id of the run."""
    words = ["prefect", "deployment", "run", deployment, "--job-variable",
             f"env={json.dumps({DASK: dask})}"]  # fmt: skip
    for name, value in parameters.items():
        words += ["--param", f"{name}={json.dumps(value)}"]
    said = prefect.run(*words)
    [run] = [line.split()[-1] for line in said.splitlines() if "UUID:" in line]
    return run


def project_of(root: Path, scenes: list[str], size: int) -> Path:
    """A project with a model in `far`, and scenes to map in `data/raw`."""
    copy_settings(root)
    edit_yaml(root / "conf/train.yaml", device="cpu", precision="float32")
    edit_yaml(root / "params.yaml", **{"map.window": 64, "map.overlap": 16})
    save_far_sighted(root / "far")
    for seed, name in enumerate(scenes):
        values = noise(size, size, seed=seed)
        make_scene(root / f"data/raw/{name}.tif", bands=CHANNELS, values=values)
    return root


def times_tried(prefect: Prefect, run: str) -> dict[str, int]:
    """How often each task of a run began, by its name."""
    found = prefect.ask("/task_runs/filter", flow_runs={"id": {"any_": [run]}}, limit=200)
    history = {one["name"]: prefect.states(one["id"]) for one in found}
    return {
        name.replace("data/raw/", "").removesuffix(".tif"): sum(
            state["type"] == "RUNNING" for state in states
        )
        for name, states in history.items()
    }


def working_on(out: Path) -> dict[str, int]:
    """Scenes that are being mapped, with the process that does it."""
    found = [path.name.rpartition("-") for path in out.glob("maps/.*.partial-*")]
    return {beside.removeprefix(".").removesuffix(".partial"): int(pid) for beside, _, pid in found}


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and what it started listen."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            found |= {c.laddr.ip for c in one.net_connections("inet") if c.status == "LISTEN"}
    return found


@pytest.mark.slow
def test_a_worker_that_dies_loses_only_its_scene_in_flight(
    prefect: Prefect, tmp_path: Path
) -> None:
    root = project_of(tmp_path / "project", SCENES, 400)
    out = root / "data/mapped"
    run = prefect.begin("glacier-map/scene", scenes=[str(root / "data/raw")], models=["far"],
                        root=str(root))  # fmt: skip
    # The third begins where one is done, by the process that did it: killed in its midst.
    first: dict[str, int] = {}
    addresses: set[str] = set()
    lost = ""
    give_up = time.monotonic() + 120
    while not lost and time.monotonic() < give_up:
        for scene, pid in working_on(out).items():
            if scene not in first and pid in first.values():
                os.kill(pid, signal.SIGKILL)
                lost = scene
            first.setdefault(scene, pid)
        if len(first) == 2 and not addresses:
            for process in map(psutil.Process, first.values()):
                addresses |= listening(process.parent() or process)
        time.sleep(0.01)
    assert lost, f"no worker was seen at a second scene: {first}"
    other = next(scene for scene in SCENES if scene != lost and first[scene] == first[lost])
    assert (out / "maps" / other / "map.json").is_file()
    ended = prefect.ended(run)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    for scene in SCENES:
        assert (out / "maps" / scene / f"{scene}_classes.tif").is_file()
        assert (out / "reports" / f"{scene}.html").is_file()
    assert working_on(out) == {}
    assert list((out / "maps").glob(".*")) == []
    expected = {f"{step} {scene}": 1 for scene in SCENES for step in ("map", "outlines of", "report on")}  # fmt: skip
    expected[f"map {lost}"] = 2
    tried = {name.replace(f"{root}/", ""): n for name, n in times_tried(prefect, run).items()}
    assert tried == expected
    assert addresses == {"127.0.0.1"}


@pytest.fixture
def scheduler(prefect: Prefect, tmp_path: Path) -> Iterator[str]:
    """Address of a scheduler with two workers, each a process of this test, as by hand."""
    place = tmp_path / "scheduler.json"
    words = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
             "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(place)]  # fmt: skip
    prefect.settings[THREADS] = "1"
    started = [prefect.start("scheduler", sys.executable, *words)]
    try:
        wait_for(place.exists, "the scheduler's address")
        address = str(json.loads(place.read_text())["address"])
        words = ["-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard",
                 "--host", "127.0.0.1"]  # fmt: skip
        started += [prefect.start(f"dask{k}", sys.executable, *words) for k in range(2)]
        yield address
    finally:
        del prefect.settings[THREADS]
        for process in reversed(started):
            prefect.stop(process)


@pytest.mark.slow
def test_a_scheduler_by_address_works_on_scenes_and_what_fails_keeps_none_of_them_out(
    prefect: Prefect, scheduler: str, tmp_path: Path
) -> None:
    from distributed import Client

    root = project_of(tmp_path / "project", SCENES[:2], 100)
    bad = root / f"data/raw/{SCENES[0]}.tif"
    bad.write_bytes(bad.read_bytes()[:20_000])
    for name in ("conf/landsat.yaml", "conf/postprocess.yaml"):
        shutil.copyfile(REPOSITORY / name, root / name)
    edit_yaml(root / "conf/postprocess.yaml", channels=["blue", "green", "red", "nir08", "swir16"])
    area = {"area": "86.5,27.7,87.1,28.2", "season": None, "cloud": None, "path_rows": [],
            "sensors": [], "api": "tests"}  # fmt: skip
    today = datetime.now(UTC).date()
    products = [
        f"LC08_L2SP_140041_{today - timedelta(days=days):%Y%m%d}_20300101_02_T1" for days in (4, 20)
    ]
    with StacServer(tmp_path / "server") as api:
        edit_yaml(root / "conf/landsat.yaml", apis=settings(api), areas={"khumbu": area})
        api.set_items([offer(api, identity=product) for product in products])
        runs = [
            begin(prefect, "glacier-map/scene", scheduler, scenes=[str(root / "data/raw")],
                  models=["far"], root=str(root)),
            begin(prefect, "landsat/watch", scheduler, root=str(root)),
        ]  # fmt: skip
        ended = [prefect.ended(run) for run in runs]
    assert ended[0]["state_type"] == "FAILED"
    assert f"{SCENES[0]}.tif: cannot be opened" in ended[0]["state"]["message"]
    assert not (root / f"data/mapped/maps/{SCENES[0]}").exists()
    assert (root / f"data/mapped/reports/{SCENES[1]}.html").is_file()
    assert (ended[1]["state_type"], ended[1]["state"]["message"]) == ("COMPLETED", "2 new scenes")
    with (root / TABLE).open(newline="") as file:
        assert sorted(row["product"] for row in csv.DictReader(file)) == sorted(products)
    with Client(scheduler, set_as_default=False) as client:
        done = client.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.task_prefixes))
    assert done == {"map_scene", "outline", "report_on", "take_in_scene"}
