"""From slices to a dataset: filter, split without leaks, link, take statistics."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
from shapely.geometry import mapping
from tqdm import tqdm

from glacier_core.config import Project
from glacier_core.dataset.blocks import RECORD, TABLE, extended, read_blocks, write_blocks
from glacier_core.dataset.loading import Dataset, Sample, SceneBands
from glacier_core.dataset.predicted import predicted_scenes, predicted_share
from glacier_core.dataset.slicing import IGNORED, SlicedScene, SliceRecord
from glacier_core.dataset.splitting import Assignment, Candidate, assign
from glacier_core.dataset.statistics import ChannelStatistics, require_observed
from glacier_core.errors import InputError
from glacier_core.files import link_or_copy, whole_file, whole_folder, write_json
from glacier_core.labels.inventory import read_vector
from glacier_core.labels.metadata import read_metadata
from glacier_core.params import PostprocessParams
from glacier_core.raster.derived import DERIVED
from glacier_core.settings import SPLITS, PostprocessConf
from glacier_core.threads import in_threads

logger = logging.getLogger(__name__)


def enough_ice(record: SliceRecord, minimum: dict[str, float], combine: str) -> bool:
    """Whether a slice has the wanted share of classes: of any, or of all of them."""
    reached = [record.class_fractions[name] >= share for name, share in minimum.items()]
    if not reached:
        return True
    return any(reached) if combine == "any" else all(reached)


def postprocess(project: Project) -> Dataset:
    """Write the dataset: `train/`, `dev/`, `test/`, `dataset.json`, statistics, the joint
    `slices.geojson` (every slice with its split) and `mask_metadata.csv`, and `blocks.geojson`,
    the blocks of ground and their split, for `glacier blocks --record`.

    Blocks that conf/blocks.geojson records keep their split, whichever scenes are added. Scenes that
    a model labelled only train, if they do at all (self_training in conf/landsat.yaml), on ground
    that neither chooses nor judges.

    Slices are linked into their split, not copied: images stay raw, and the model normalises
    them by the statistics that it carries, in training and in use alike.

    Raises:
        InputError: a scene is not sliced, lacks a channel, or a split ends up empty.
    """
    conf, params = project.postprocess, project.params.postprocess
    scenes = [
        SlicedScene.read(project.slice_folder(name) / "slices.geojson")
        for name in project.masking.scenes
    ]
    _check_slices(project, scenes)
    records = [record for scene in scenes for record in scene.slices]
    shapes = [shape for scene in scenes for shape in scene.footprints]
    predicted = predicted_scenes(project)
    unused = set() if not predicted or project.self_training else set(predicted)
    usable = [
        i
        for i, record in enumerate(records)
        if usable_slice(record, params) and record.scene not in unused
    ]
    if not usable:
        raise InputError(
            f"no slice of {len(records)} has {params.min_valid_fraction:.0%} valid pixels "
            "(postprocess.min_valid_fraction in params.yaml). Look at valid_fraction in "
            "data/slices/*/slices.geojson: are border, nodata and channels right?"
        )
    recorded = read_blocks(project.root / RECORD)
    years = {scene.id: int(scene.date[:4]) if scene.date else None for scene in scenes}
    footprints = gpd.GeoSeries([shapes[i] for i in usable], crs="EPSG:4326")
    assignment = assign(
        footprints,
        [
            candidate_of(records[i], years[records[i].scene], conf.classes, predicted)
            for i in usable
        ],
        method=conf.split,
        shares=params.split.shares(),
        block_km=params.block_km,
        buffer_m=params.buffer_m,
        named=conf.assign,
        regions=read_vector(project.root / conf.regions_path) if conf.regions_path else None,
        seed=project.params.seed,
        recorded=recorded,
    )
    fate = _fates(records, usable, assignment, conf, params, predicted)
    for i, record in enumerate(records):
        if record.scene in unused:
            fate[i] = "labelled by a model, and self_training is off"
    blocks = dict(zip(usable, assignment.blocks, strict=True))
    dataset = _link(project, scenes, records, fate, blocks, predicted, leaky=assignment.leaky)
    _statistics(project, dataset)
    _write_joint_files(project, scenes, records, shapes, fate)
    table = dict(recorded)
    if conf.split == "blocks":
        shown = list(footprints.values)
        table = extended(recorded, shown, assignment.splits, assignment.blocks, assignment.settled)
    write_blocks(project.dataset_folder / TABLE, table)
    _report(fate, assignment, dataset)
    if recorded and (fresh := sorted(set(table) - set(recorded))):
        logger.warning(
            "%d blocks are new (%s): another scene may move them to another split until "
            "`glacier blocks --record` fixes it",
            len(fresh),
            ", ".join(fresh),
        )
    return dataset


def _check_slices(project: Project, scenes: list[SlicedScene]) -> None:
    conf = project.postprocess
    for scene in scenes:
        missing = [name for name in conf.channels if name not in scene.bands]
        if missing:
            held = f"has no {', '.join(missing)}; it has {', '.join(scene.bands)}"
            if any(name in DERIVED for name in missing):
                raise InputError(
                    f"conf/postprocess.yaml: channels: what was sliced of scene {scene.id} {held}. "
                    "Run `glacier slice` again: it works out such channels"
                )
            raise InputError(
                f"conf/postprocess.yaml: channels: scene {scene.id} ({scene.source}) {held}"
            )
        if scene.used != conf.channels:
            raise InputError(
                f"scene {scene.id} was sliced for channels {', '.join(scene.used)}; "
                "run `glacier slice` again, as they decide which pixels count as seen"
            )


def usable_slice(record: SliceRecord, params: PostprocessParams) -> bool:
    """Whether enough of a slice was seen for it to be in any split."""
    return record.img is not None and record.valid_fraction >= params.min_valid_fraction


def candidate_of(
    record: SliceRecord, year: int | None, classes: list[str], predicted: Mapping[str, str]
) -> Candidate:
    """A slice as `assign` weighs it: by its valid pixels, and those of each class."""
    valid = record.valid_fraction * record.height * record.width
    weights = {"valid": valid}
    weights |= {name: record.class_fractions[name] * valid for name in classes}
    return Candidate(record.scene, year, weights, record.scene in predicted)


def _fates(
    records: list[SliceRecord],
    usable: list[int],
    assignment: Assignment,
    conf: PostprocessConf,
    params: PostprocessParams,
    predicted: Mapping[str, str],
) -> list[str]:
    """What becomes of each slice: a split, or why it is in none."""
    fate = ["too few valid pixels"] * len(records)
    for i, split, outside in zip(usable, assignment.splits, assignment.outside, strict=True):
        if outside:
            fate[i] = "outside every region"
        elif split is None and records[i].scene in predicted:
            fate[i] = "labelled by a model, on ground that judges"
        elif split is None:
            fate[i] = "too close to another split"
        elif split in conf.filter.splits and not enough_ice(
            records[i], params.min_class_fraction, conf.filter.combine
        ):
            fate[i] = "too little of the classes"
        else:
            fate[i] = split
    for name in set(assignment.splits) - {None}:
        if name not in fate:
            raise InputError(
                f"the {name} split is empty: none of its slices reaches "
                f"postprocess.min_class_fraction {params.min_class_fraction} "
                f"({conf.filter.combine} of them)"
            )
    return fate


def _link(
    project: Project,
    scenes: list[SlicedScene],
    records: list[SliceRecord],
    fate: list[str],
    blocks: dict[int, str],
    predicted: Mapping[str, str],
    *,
    leaky: bool,
) -> Dataset:
    conf = project.postprocess
    order = np.random.default_rng(project.params.seed).permutation(len(records))
    splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
    for name in SPLITS:
        with whole_folder(project.dataset_folder / name) as folder:
            for i in order:
                record = records[i]
                if fate[i] != name or record.img is None or record.label is None:
                    continue
                for file in (record.img, record.label):
                    link_or_copy(project.slice_folder(record.scene) / file, folder / file)
                splits[name].append(
                    Sample(
                        scene=record.scene,
                        k=record.k,
                        img=record.img,
                        label=record.label,
                        block=blocks[int(i)],
                        row=record.row,
                        col=record.col,
                        height=record.height,
                        width=record.width,
                    )
                )
    content: dict[str, Any] = {
        "channels": conf.channels,
        "classes": conf.classes,
        "impute": conf.impute,
        "leaky": leaky,
        "scenes": {
            scene.id: SceneBands(
                scene.bands, scene.nodata, scene.classes, predicted.get(scene.id), scene.units
            ).to_json()
            for scene in scenes
        },
        "predicted_share": predicted_share(project, splits["train"], predicted),
        "splits": {name: [asdict(sample) for sample in splits[name]] for name in SPLITS},
    }
    content["fingerprint"] = _fingerprint(project.dataset_folder, content)
    write_json(project.dataset_folder / "dataset.json", content)
    return Dataset.open(project.dataset_folder)


def _fingerprint(folder: Path, content: dict[str, Any]) -> str:
    """Hash of the description and of every slice in it."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    files = [
        folder / name / sample[kind]
        for name in SPLITS
        for sample in content["splits"][name]
        for kind in ("img", "label")
    ]
    for found in in_threads(_digest, files):
        digest.update(found)
    return digest.hexdigest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _statistics(project: Project, dataset: Dataset) -> None:
    """Exact statistics of the training split, each valid pixel counted once."""
    statistics = ChannelStatistics(dataset.channels)
    samples, once = dataset.splits["train"], dataset.counted_once("train")
    pairs = zip(samples, once, strict=True)

    def of_slice(pair: tuple[Sample, npt.NDArray[np.bool_]]) -> ChannelStatistics:
        sample, first = pair
        valid = (dataset.label("train", sample) != IGNORED) & first
        return ChannelStatistics(dataset.channels).partial_fit(
            dataset.image("train", sample)[valid]
        )

    parts = in_threads(of_slice, pairs)
    for part in tqdm(parts, total=len(samples), desc="statistics", disable=None):
        statistics.merge(part)
    require_observed(statistics)
    for name in statistics.constant():
        logger.warning(
            "channel %s is constant over the training split: it tells nothing and is only "
            "centred, not scaled",
            name,
        )
    statistics.write(
        project.root / project.postprocess.statistics_path,
        source={"split": "train", "slices": len(samples), "dataset": dataset.fingerprint},
    )


def _write_joint_files(
    project: Project,
    scenes: list[SlicedScene],
    records: list[SliceRecord],
    shapes: list[Any],
    fate: list[str],
) -> None:
    sources = {scene.id: scene.source for scene in scenes}
    features = [
        {
            "type": "Feature",
            "geometry": mapping(shape),
            "properties": {"split": name, **record.to_properties(sources[record.scene])},
        }
        for record, shape, name in zip(records, shapes, fate, strict=True)
    ]
    with whole_file(project.dataset_folder / "slices.geojson") as beside:
        content = {"type": "FeatureCollection", "name": "slices", "features": features}
        beside.write_text(json.dumps(content))
    rows = [read_metadata(project.mask_folder(name)) for name in project.masking.scenes]
    with (
        whole_file(project.dataset_folder / "mask_metadata.csv") as beside,
        beside.open("w", newline="") as file,
    ):
        # Masks of different versions of this code may differ in their columns.
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(rows)


def _report(fate: list[str], assignment: Assignment, dataset: Dataset) -> None:
    for name, count in sorted(Counter(fate).items()):
        logger.info("%5d slices: %s", count, name)
    for name, by in dataset.predicted_by().items():
        logger.warning("%s trains on labels that a model made (%s)", name, by)
    for name in SPLITS:
        blocks = {sample.block for sample in dataset.splits[name]}
        logger.info("%s: %d slices in %d blocks", name, len(dataset.splits[name]), len(blocks))
    if assignment.leaky:
        logger.warning(
            "random split: it leaks. %d pairs of slices in different splits show the same "
            "ground, and neighbours resemble each other: scores will be too good",
            assignment.overlapping_pairs,
        )
