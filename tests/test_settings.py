"""Settings are checked when read: one message that names file and key, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import REMOVED, REPOSITORY, edit_yaml, glacier, make_project
from dvc.utils.serialize import modify_yaml

from glacier_core.cli import main
from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.params import Params
from glacier_core.settings import Checked, PostprocessConf, TrainConf

PARAMS, MASKING = "params.yaml", "conf/masking_paths.yaml"
POSTPROCESS, TRAIN = "conf/postprocess.yaml", "conf/train.yaml"


def check_all(root: Path) -> None:
    """What every command reads before it works, all of it."""
    project = Project(root)
    assert project.params
    assert project.masking
    assert project.postprocess
    assert project.train


def refusal(root: Path) -> str:
    """The one message about a project's settings."""
    with pytest.raises(InputError) as caught:
        check_all(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_repositorys_own_settings_are_valid() -> None:
    check_all(REPOSITORY)


# --- keys ------------------------------------------------------------------------------------

WRONG = [
    (PARAMS, "train.lerning_rate", 0.1, "train.lerning_rate: unknown key"),
    (PARAMS, "slices", {}, "slices: unknown key"),
    (PARAMS, "seed", REMOVED, "seed: missing"),
    (PARAMS, "train.dropout", REMOVED, "train.dropout: missing"),
    (PARAMS, "seed", -1, "seed: "),
    (PARAMS, "seed", 1.5, "seed: "),
    (PARAMS, "slice.size", "512", "slice.size: input should be a valid integer, found '512'"),
    (PARAMS, "slice.size", 512.0, "slice.size: input should be a valid integer, found 512.0"),
    (PARAMS, "slice.overlap", 32, "slice: overlap 32 must be smaller than size 32"),
    (PARAMS, "slice.overlap", 40, "slice: overlap 40 must be smaller than size 32"),
    (PARAMS, "slice.overlap", -1, "slice.overlap: "),
    (PARAMS, "simulate.dates", ["25.10.2000"], "simulate.dates: Invalid isoformat"),
    (PARAMS, "mask.year_tolerance", -2, "mask.year_tolerance: "),
    (PARAMS, "mask.year_tolerance", float("nan"), "mask.year_tolerance: "),
    (PARAMS, "postprocess.min_valid_fraction", 10, "postprocess.min_valid_fraction: "),
    (PARAMS, "postprocess.min_valid_fraction", -0.1, "postprocess.min_valid_fraction: "),
    (
        PARAMS,
        "postprocess.min_class_fraction.debris",
        1.01,
        "postprocess.min_class_fraction.debris: input should be less than or equal to 1",
    ),
    (
        PARAMS,
        "postprocess.min_class_fraction.debri",
        0.1,
        "postprocess.min_class_fraction: unknown classes ['debri']",
    ),
    (PARAMS, "postprocess.split.train", 0.9, "postprocess.split: train + dev + test must be 1"),
    (PARAMS, "postprocess.block_km", 0, "postprocess.block_km: "),
    (PARAMS, "train.run_name", "../other", "train.run_name: "),
    (
        PARAMS,
        "train.class_weights",
        {"background": 0.0, "clean_ice": 0.0, "debris": 0.0},
        "train.class_weights: at least one class needs a weight above 0",
    ),
    (POSTPROCESS, "statistics_path", "data/../../statistics.json", "leaves the project's folder"),
    (PARAMS, "train.epochs", True, "train.epochs: "),
    (PARAMS, "train.ema_decay", 1.0, "train.ema_decay: input should be less than 1"),
    (PARAMS, "train.channel_dropout", 1.0, "train.channel_dropout: input should be less than 1"),
    (PARAMS, "train.haze", -0.1, "train.haze: "),
    (PARAMS, "train.zoom", -0.1, "train.zoom: "),
    (PARAMS, "train.border_weight", -0.1, "train.border_weight: "),
    (PARAMS, "train.gaps", 1.5, "train.gaps: "),
    (PARAMS, "train.focus", {"snow": 0.1}, "train.focus: unknown classes ['snow']; there are ['b"),
    (PARAMS, "train.focus", {"debris": 1.5}, "train.focus.debris: input should be less than"),
    (PARAMS, "train.focus", {"debris": 0.7, "clean_ice": 0.4}, "which sum to at most 1"),
    (PARAMS, "train.focus", REMOVED, "train.focus: missing"),
    (PARAMS, "train.class_weights", "balancd", "input should be 'balanced', found 'balancd'"),
    (PARAMS, "train.class_weights", 3, "train.class_weights.weights: input should be a valid dict"),
    (PARAMS, "train.class_weights.debris", -1.0, "train.class_weights.weights.debris: input"),
    (PARAMS, "train.class_weights.snow", 1.0, "train.class_weights: "),
    (PARAMS, "train.class_weights.background", REMOVED, "train.class_weights: "),
    (MASKING, "classes", ["clean_ice"], "scene LE07_SITE0_20001025: mask_paths has"),
    (MASKING, "classes", ["clean_ice", "clean_ice"], "classes must differ"),
    (MASKING, "classes", ["clean_ice", "all"], "are words of our own"),
    (MASKING, "classes", ["clean ice", "debris"], "class 'clean ice': use letters"),
    (MASKING, "simulated", {"demo": "data/$(touch pwned)"}, "simulated 'data/$(touch pwned)'"),
    (POSTPROCESS, "regions_path", "elsewhere/regions.gpkg", "regions_path: elsewhere/regions.gpkg"),
    (POSTPROCESS, "regions_path", "data/raw/outlines/../x.gpkg", "lies outside outlines_dir"),
    (MASKING, "scenes", {}, "scenes: "),
    (
        MASKING,
        "scenes.LE07_SITE0_20001025.year_field",
        REMOVED,
        "scenes.LE07_SITE0_20001025.year_field: missing",
    ),
    (MASKING, "scenes.LE07_SITE0_20001025.date", "2000-13-01", "scenes.LE07_SITE0_20001025.date: "),
    (MASKING, "scenes.LE07_SITE0_20001025.img_path", None, "scenes.LE07_SITE0_20001025.img_path: "),
    (
        MASKING,
        "scenes.LE07_SITE0_20001025.border_path",
        "elsewhere/border.shp",
        "elsewhere/border.shp lies outside outlines_dir data/raw/outlines",
    ),
    (POSTPROCESS, "channels", [], "channels: "),
    (POSTPROCESS, "channels", ["B1", "B2", "B1"], "channels: a name stands twice"),
    (POSTPROCESS, "classes", ["ice"], "classes: ['ice'] are not burned by conf/masking_paths.yaml"),
    (POSTPROCESS, "classes", ["debris", "clean_ice"], "must keep the order"),
    (POSTPROCESS, "impute", "median", "impute"),
    (POSTPROCESS, "impute", float("nan"), "impute"),
    (PARAMS, "train.learning_rate", float("inf"), "train.learning_rate: "),
    (POSTPROCESS, "split", "rows", "split: "),
    (POSTPROCESS, "split", "regions", "split 'regions' needs regions_path"),
    (POSTPROCESS, "split", "scenes", "split 'scenes' needs assign"),
    (POSTPROCESS, "assign", {"A": "validation"}, "assign.A: "),
    (POSTPROCESS, "filter.splits", ["train", "val"], "filter.splits.1: "),
    (TRAIN, "loss", "dicey", "loss: 'dicey': expected each once of dice, "),
    (TRAIN, "loss", "dice+dice", "loss: 'dice': expected each once"),
    (TRAIN, "loss", "dice+0*focal", "loss: '0*focal': expected"),
    (TRAIN, "loss", "dice+1..5*focal", "loss: "),
    (TRAIN, "loss_weights", "learnt", "loss_weights: input should be 'fixed' or 'learned'"),
    (TRAIN, "model.blocks", "dense", "model.blocks: input should be 'plain' or 'residual'"),
    (TRAIN, "model.attention", "true", "model.attention: "),
    (TRAIN, "model.heads", REMOVED, "model.heads: missing"),
    (TRAIN, "augment.rotate", True, "augment.rotate: unknown key"),
]


@pytest.mark.parametrize(
    ("file", "key", "value", "message"), WRONG, ids=[f"{k}={v}"[:60] for _, k, v, _ in WRONG]
)
def test_a_wrong_value_is_one_message_that_names_file_and_key(
    tmp_path: Path, file: str, key: str, value: Any, message: str
) -> None:
    make_project(tmp_path, places=1)
    edit_yaml(tmp_path / file, **{key: value})
    found = refusal(tmp_path)
    assert str(tmp_path / file) in found
    assert message in found


def test_two_wrong_values_are_told_together(tmp_path: Path) -> None:
    make_project(tmp_path, places=1)
    edit_yaml(tmp_path / PARAMS, seed="one", **{"train.epochs": 0})
    found = refusal(tmp_path)
    assert "seed: " in found
    assert "train.epochs: " in found


@pytest.mark.parametrize(
    ("file", "line", "key"),
    [
        (POSTPROCESS, "impute: 0.0\n", "impute"),
        (PARAMS, "seed: 2\n", "seed"),
        (TRAIN, "loss: dice\n", "loss"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(
    tmp_path: Path, file: str, line: str, key: str
) -> None:
    make_project(tmp_path, places=1)
    path = tmp_path / file
    path.write_text(path.read_text() + line)
    last = len(path.read_text().splitlines())
    assert refusal(tmp_path) == f"{path}, line {last}: key '{key}' stands twice"


def test_a_scene_that_stands_twice_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path, places=1)
    entry = yaml.safe_dump({"LE07_SITE0_20001025": {"img_path": "other.tif"}})
    indented = "".join(f"  {line}\n" for line in entry.splitlines())
    project.masking_path.write_text(project.masking_path.read_text() + indented)
    assert "key 'LE07_SITE0_20001025' stands twice" in refusal(tmp_path)


@pytest.mark.parametrize("file", [PARAMS, MASKING, POSTPROCESS, TRAIN])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text(""), "expected a mapping"),
        (lambda path: path.write_text("- a\n- b\n"), "expected a mapping"),
        (lambda path: path.write_text("a: [1, 2\n"), "line 2"),
        (lambda path: path.write_text("\tseed: 1\n"), "line 1"),
        (lambda path: path.write_bytes(b"seed: \xff\xfe\n"), "not UTF-8"),
        (lambda path: path.write_text("[a, b]: 1\n"), "line 1"),
    ],
    ids=["missing", "empty", "list", "unclosed", "tab", "bytes", "list as key"],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(
    tmp_path: Path, file: str, spoil: Callable[[Path], object], message: str
) -> None:
    make_project(tmp_path, places=1)
    spoil(tmp_path / file)
    found = refusal(tmp_path)
    assert str(tmp_path / file) in found
    assert message in found


# --- what must be understood -----------------------------------------------------------------


def test_a_small_number_set_through_dvc_is_still_a_number(tmp_path: Path) -> None:
    make_project(tmp_path, places=1)
    # As `dvc exp run -S train.weight_decay=0.00001` writes it.
    with modify_yaml(str(tmp_path / PARAMS)) as content:
        content["train"]["weight_decay"] = 0.00001
    assert "1e-05" in (tmp_path / PARAMS).read_text()
    assert Project(tmp_path).params.train.weight_decay == 1e-5


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2E-4", 2e-4), ("1.5e-3", 1.5e-3)])
def test_exponents_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    make_project(tmp_path, places=1)
    path = tmp_path / PARAMS
    path.write_text(path.read_text().replace("learning_rate: 0.002", f"learning_rate: {text}"))
    assert text in path.read_text()
    assert Project(tmp_path).params.train.learning_rate == value


def test_whole_numbers_serve_where_fractions_are_meant(tmp_path: Path) -> None:
    make_project(tmp_path, places=1)
    edit_yaml(tmp_path / PARAMS, **{"postprocess.split": {"train": 1, "dev": 0, "test": 0}})
    shares = Project(tmp_path).params.postprocess.split.shares()
    assert shares == {"train": 1, "dev": 0, "test": 0}


def test_the_code_has_no_second_set_of_defaults() -> None:
    def models(model: type[Checked]) -> list[type[Checked]]:
        inner = [
            part
            for field in model.model_fields.values()
            for part in (field.annotation, *get_args(field.annotation))
            if isinstance(part, type) and issubclass(part, Checked)
        ]
        return [model, *(below for part in inner for below in models(part))]

    found = [below for top in (Params, PostprocessConf, TrainConf) for below in models(top)]
    assert len(found) > 10
    for model in found:
        given = [name for name, field in model.model_fields.items() if not field.is_required()]
        assert given == [], model


def test_an_unknown_scene_is_answered_with_those_there(project: Project) -> None:
    with pytest.raises(InputError, match=r"no scene 'X'; there are: LE07_SITE0_20001025, LE07"):
        project.scene("X")


# --- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "file", "key", "value"),
    [
        ("mask", MASKING, "clases", ["ice"]),
        ("slice", PARAMS, "slice.overlap", 99),
        ("postprocess", POSTPROCESS, "impute", "median"),
    ],
)
def test_commands_refuse_wrong_settings_before_they_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    file: str,
    key: str,
    value: Any,
) -> None:
    make_project(tmp_path, places=1)
    edit_yaml(tmp_path / file, **{key: value})
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main([command], prog_name="glacier")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}: ")
    assert key.split(".")[0] in line
    assert sorted(tmp_path.rglob("*")) == before


def test_the_real_command_ends_with_2_and_one_line(tmp_path: Path) -> None:
    make_project(tmp_path, places=1)
    path = tmp_path / PARAMS
    path.write_text(path.read_text() + "seed: 2\n")
    done = glacier(tmp_path, "mask")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: params.yaml, line ")
    assert line.endswith("key 'seed' stands twice")


def test_a_folder_that_is_no_project_is_told_what_is_missing(tmp_path: Path) -> None:
    done = glacier(tmp_path, "mask")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: conf/masking_paths.yaml: no such file.")


def test_factors_are_learned_of_several_terms_alone(tmp_path: Path) -> None:
    make_project(tmp_path, places=1)
    edit_yaml(tmp_path / TRAIN, loss="dice+0.5*boundary", loss_weights="learned")
    check_all(tmp_path)
    edit_yaml(tmp_path / TRAIN, loss="dice")
    assert "loss_weights: learned needs a loss of several terms, not dice" in refusal(tmp_path)


@pytest.mark.parametrize("example", ["himalaya_debris", "icimod_hkh"])
def test_the_examples_are_valid_settings(tmp_path: Path, example: str) -> None:
    source = REPOSITORY / "conf/examples" / example
    project = make_project(tmp_path, places=1)
    masking = source / "masking_paths.yaml"
    for name in ("postprocess.yaml", "train.yaml"):
        (tmp_path / "conf" / name).write_text((source / name).read_text())
    (tmp_path / "params.yaml").write_text((source / "params.yaml").read_text())
    if masking.exists():
        project.masking_path.write_text(masking.read_text())
    elif example == "himalaya_debris":
        entry = yaml.safe_load(project.masking_path.read_text())["scenes"].popitem()[1]
        tiles = yaml.safe_load((source / "postprocess.yaml").read_text())["assign"]
        edit_yaml(project.masking_path, scenes=dict.fromkeys(tiles, entry))
    checked = Project(tmp_path).check()
    assert checked.params.train.run_name == example
    assert checked.postprocess.classes == ["clean_ice", "debris"]
