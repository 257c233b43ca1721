"""Small Landsat Collection 2 Level-2 products, as USGS delivers them, for the tests.

Not copies: the MTL holds the groups and keys that products have, both sets of coefficients
included, with numbers of the tests' own.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from conftest import REPOSITORY, UTM, edit_yaml, make_scene, north_up
from numpy.typing import NDArray

from glacier_core.config import Project

TM = {"blue": 1, "green": 2, "red": 3, "nir08": 4, "swir16": 5, "swir22": 7}
OLI = {"coastal": 1, "blue": 2, "green": 3, "red": 4, "nir08": 5, "swir16": 6, "swir22": 7}

CLEAR = 21824
"""QA_PIXEL of clear ground on Landsat 8; as TM and ETM+ say it, 5440."""
FILL, CLOUD, SHADOW = 1, 22280, 23888

KELVIN = (0.00341802, 149.0)
SUN = ("-151.20000000", "38.40000000")
"""Azimuth, which Landsat counts from -180 to 180, and elevation."""


def scaling(code: str) -> tuple[float, float]:
    """(factor, summand) of a band: other ones for each, so that one mistaken is found out."""
    if code.startswith("ST_"):
        return KELVIN
    number = int(code.removeprefix("SR_B"))
    return 2.75e-05 + number * 1e-07, -0.2 - number * 1e-03


def landsat_project(folder: Path, **changes: Any) -> Project:
    """A project's folder with the repository's own conf/landsat.yaml, some keys changed; bands as
    the product has them and no DEM, where `changes` do not say otherwise."""
    (folder / "conf").mkdir(parents=True)
    shutil.copyfile(REPOSITORY / "conf/landsat.yaml", folder / "conf/landsat.yaml")
    plain = {"harmonise": "none", "dem_path": None, "dem_collection": None}
    plain |= {"dem_resampling": "bilinear"}
    edit_yaml(folder / "conf/landsat.yaml", **(plain | changes))
    return Project(folder)


def product_id(
    sensor: str = "LC08",
    day: str = "20150710",
    processed: str = "20200908",
    level: str = "L2SP",
    collection: str = "02",
) -> str:
    return f"{sensor}_{level}_140041_{day}_{processed}_{collection}_T1"


def codes(sensor: str) -> dict[str, str]:
    """Code of each band by common name, as in the names of files."""
    oli = sensor[2:] in ("08", "09")
    reflective = {name: f"SR_B{number}" for name, number in (OLI if oli else TM).items()}
    return reflective | {"lwir": "ST_B10" if oli else "ST_B6"}


def counts(shape: tuple[int, int] = (48, 40), seed: int = 0) -> NDArray[np.uint16]:
    """Digital numbers of plausible reflectance, nowhere fill."""
    return np.random.default_rng(seed).integers(8000, 30000, shape).astype(np.uint16)


def groups(
    identity: str,
    generated: str,
    names: Mapping[str, str],
    slc: str | None = None,
    sun: tuple[str, str] = SUN,
) -> dict[str, dict[str, str]]:
    """An MTL's groups."""
    sensor, level = identity[:4], identity[5:9]
    level_1 = identity.replace(level, "L1TP")
    contents = {"LANDSAT_PRODUCT_ID": identity, "PROCESSING_LEVEL": level}
    contents |= {"COLLECTION_NUMBER": identity[-5:-3]}
    reflectance: dict[str, str] = {}
    temperature: dict[str, str] = {}
    old: dict[str, str] = {}
    for code, name in names.items():
        number = code.partition("_B")[2]
        if code.startswith("SR_"):
            contents[f"FILE_NAME_BAND_{number}"] = name
            reflectance[f"REFLECTANCE_MULT_BAND_{number}"] = repr(scaling(code)[0])
            reflectance[f"REFLECTANCE_ADD_BAND_{number}"] = repr(scaling(code)[1])
            old[f"REFLECTANCE_MULT_BAND_{number}"] = "2.0000E-05"
            old[f"REFLECTANCE_ADD_BAND_{number}"] = "-0.100000"
        elif code.startswith("ST_"):
            contents[f"FILE_NAME_BAND_{code}"] = name
            temperature[f"TEMPERATURE_MULT_BAND_{code}"] = f"{KELVIN[0]}"
            temperature[f"TEMPERATURE_ADD_BAND_{code}"] = f"{KELVIN[1]}"
        elif code == "QA_PIXEL":
            contents["FILE_NAME_QUALITY_L1_PIXEL"] = name
        else:
            contents["FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION"] = name
    image = {"SPACECRAFT_ID": f"LANDSAT_{int(sensor[2:])}"}
    image |= {"SUN_AZIMUTH": sun[0], "SUN_ELEVATION": sun[1]}
    if slc is not None:
        image["SENSOR_MODE_SLC"] = slc
    record = {"LANDSAT_PRODUCT_ID": identity, "PROCESSING_LEVEL": level}
    record |= {"DATE_PRODUCT_GENERATED": generated, "PROCESSING_SOFTWARE_VERSION": "LPGS_15.3.1c"}
    return {
        "PRODUCT_CONTENTS": contents,
        "IMAGE_ATTRIBUTES": image,
        "LEVEL2_PROCESSING_RECORD": record,
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": reflectance,
        "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS": temperature,
        "LEVEL1_PROCESSING_RECORD": {"LANDSAT_PRODUCT_ID": level_1, "PROCESSING_LEVEL": "L1TP"},
        "LEVEL1_RADIOMETRIC_RESCALING": old,
    }


def spell(content: Mapping[str, Mapping[str, str]], spelling: str) -> str:
    """An MTL file's text."""
    if spelling == "json":
        return json.dumps({"LANDSAT_METADATA_FILE": content})
    if spelling == "xml":
        inner = "".join(
            f"<{group}>{''.join(f'<{k}>{v}</{k}>' for k, v in items.items())}</{group}>"
            for group, items in content.items()
        )
        return f'<?xml version="1.0"?><LANDSAT_METADATA_FILE>{inner}</LANDSAT_METADATA_FILE>'
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for group, items in content.items():
        lines += [f"  GROUP = {group}", *(f'    {k} = "{v}"' for k, v in items.items())]
        lines += [f"  END_GROUP = {group}"]
    return "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END", ""])


def make_product(
    folder: Path,
    *,
    identity: str | None = None,
    generated: str = "2020-09-08T21:42:54Z",
    layers: Mapping[str, Any] | None = None,
    spelling: str = "txt",
    slc: str | None = None,
    sun: tuple[str, str] = SUN,
    transform: Affine | None = None,
    shape: tuple[int, int] = (48, 40),
    crs: str | None = UTM,
) -> Path:
    """Write a product's folder.

    Args:
        folder: is made.
        identity: of the product.
        generated: when it was made.
        layers: digital numbers by common name, `QA_PIXEL` or `QA_RADSAT`; None leaves a file out.
            What is not named is `counts` with a seed of its own, clear and nowhere saturated.
        spelling: of the MTL: txt, xml, json; empty for none.
        slc: SENSOR_MODE_SLC, for ETM+.
        sun: SUN_AZIMUTH and SUN_ELEVATION.
        transform: of all rasters.
        shape: height and width.
        crs: of all rasters.
    """
    identity = identity or product_id()
    sensor = identity[:4]
    by_name = codes(sensor) | {"QA_PIXEL": "QA_PIXEL", "QA_RADSAT": "QA_RADSAT"}
    if identity[5:9] == "L2SR":
        del by_name["lwir"]
    files = {}
    for seed, (name, code) in enumerate(by_name.items()):
        usual: Any = counts(shape, seed)
        if name == "QA_PIXEL":
            usual = CLEAR if sensor[2:] in ("08", "09") else 5440
        elif name == "QA_RADSAT":
            usual = 0
        values = (layers or {}).get(name, usual)
        if values is None:
            continue
        files[code] = f"{identity}_{code}.TIF"
        make_scene(
            folder / files[code],
            bands=[None],
            values=np.broadcast_to(values, (1, *shape)),
            dtype="uint16",
            nodata=0 if code.startswith("S") else None,
            transform=transform or north_up(),
            crs=crs,
        )
    if spelling:
        content = groups(identity, generated, files, slc, sun)
        (folder / f"{identity}_MTL.{spelling}").write_text(spell(content, spelling))
    return folder


def make_archive(path: Path, folder: Path, *, mode: str = "w") -> Path:
    """Pack a product's folder as USGS does: all files at the top."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for file in sorted(folder.iterdir()):
            tar.add(file, arcname=file.name)
    return path


def add_member(path: Path, member: tarfile.TarInfo, data: bytes = b"x") -> Path:
    """Add a member of any kind to a tar archive."""
    with tarfile.open(path, "a") as tar:
        member.size = len(data) if member.isreg() else 0
        tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return path


def make_item(
    folder: Path, *, keys: str = "common", version: str = "1.0.0", scaled: bool = False
) -> Path:
    """Write the STAC item of a product's folder into it.

    Args:
        folder: of `make_product`.
        keys: `common` (blue, lwir11, qa_pixel) or `files` (SR_B2.TIF).
        version: of STAC.
        scaled: whether assets declare scale and offset.
    """
    raster = next(folder.glob("*_QA_PIXEL.TIF")).name
    identity = raster.removesuffix("_QA_PIXEL.TIF")
    common = {code: name for name, code in codes(identity[:4]).items()}
    assets: dict[str, Any] = {"thumbnail": {"href": "https://example.org/thumb_small.jpeg"}}
    for file in sorted(folder.iterdir()):
        code = file.stem.removeprefix(identity + "_")
        if file.suffix != ".TIF":
            key = f"MTL{file.suffix}" if keys == "files" else f"mtl{file.suffix}"
        elif keys == "files":
            key = f"{code}.TIF"
        else:
            key = common.get(code, code.lower())
            key = "lwir11" if code == "ST_B10" else key
        assets[key] = {"href": f"./{file.name}"}
        if scaled and code in common:
            scale, offset = scaling(code)
            assets[key]["raster:bands"] = [{"scale": scale, "offset": offset}]
    short = "_".join(identity.split("_")[:4] + identity.split("_")[5:])
    item = {"type": "Feature", "stac_version": version, "id": short, "assets": assets}
    path = folder / "item.json"
    properties = {"datetime": "2015-07-10"}
    # STAC counts azimuths from 0 to 360.
    sun = {"view:sun_azimuth": float(SUN[0]) % 360, "view:sun_elevation": float(SUN[1])}
    path.write_text(json.dumps(item | {"properties": properties | sun}))
    return path
