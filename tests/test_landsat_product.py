"""A Landsat product is read as it says itself, however it is spelled or packed, or is refused."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import glacier, make_scene, north_up
from small_landsat import (
    add_member,
    codes,
    landsat_project,
    make_archive,
    make_item,
    make_product,
    product_id,
    scaling,
)

from glacier_core.errors import InputError
from glacier_core.landsat.metadata import read_metadata
from glacier_core.landsat.product import Product, open_product
from glacier_core.raster.sun import Sun

HERE = "landsat_ingest"


def opened(path: Path, work: Path) -> Product:
    with open_product(path, work) as product:
        return product


# --- real MTL files --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_a_real_mtl_gives_the_level_2_coefficients_not_those_of_level_1(
    real_data: Path, suffix: str
) -> None:
    name = f"LC08_L2SP_005009_20150710_20200908_02_T2_MTL.{suffix}"
    metadata = read_metadata(real_data / HERE / "mtl" / name)
    expected = {f"SR_B{n}": (2.75e-05, -0.2) for n in range(1, 8)}
    assert metadata.scaling == expected | {"ST_B10": (0.00341802, 149.0)}
    assert metadata.id.scene == "LC08_005009_20150710"
    assert metadata.id.acquired == datetime.date(2015, 7, 10)
    assert metadata.generated == "2020-09-08T21:42:54Z"
    assert metadata.files["QA_RADSAT"].endswith("_QA_RADSAT.TIF")
    assert metadata.sun == Sun(177.8846007, 40.0015903)


@pytest.mark.parametrize(
    ("name", "scene", "slc_off", "thermal"),
    [
        ("LE07_L2SP_021030_20100109_20200911_02_T1", "LE07_021030_20100109", True, True),
        ("LT04_L2SP_002026_19830110_20200918_02_T1", "LT04_002026_19830110", False, True),
        ("LT05_L2SP_058014_20110312_20200823_02_T1", "LT05_058014_20110312", False, True),
        ("LT05_L2SR_087017_20090621_20200827_02_T2", "LT05_087017_20090621", False, False),
    ],
)
def test_a_real_xml_mtl_of_tm_and_etm_is_read(
    real_data: Path, name: str, scene: str, slc_off: bool, thermal: bool
) -> None:
    metadata = read_metadata(real_data / HERE / f"mtl/{name}_MTL.xml")
    reflective = {f"SR_B{n}" for n in (1, 2, 3, 4, 5, 7)}
    assert {metadata.scaling[code] for code in reflective} == {(2.75e-05, -0.2)}
    assert set(metadata.scaling) == reflective | ({"ST_B6"} if thermal else set())
    assert (metadata.id.scene, metadata.slc_off) == (scene, slc_off)
    assert metadata.sun is not None
    assert 150 < metadata.sun.azimuth < 170
    assert 15 < metadata.sun.elevation < 51


def test_a_real_level_1_product_is_refused(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not of Collection 2; .* needs Collection 2 Level-2"):
        opened(real_data / HERE / "le07_l1tp_195025_crop", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "stac_usgs_expected/LC08_L2SP_005009_20150710_20200908_02_T2_SR_stac.json",
        "stac_usgs_expected/LT05_L2SP_010067_19860424_20200918_02_T2_SR_stac.json",
        "stac_items/LE07_L2SP_021030_20100109_02_T1.json",
        "stac_items/LC09_L2SP_010065_20220129_02_T1.json",
    ],
)
def test_real_items_of_every_spelling_find_the_files_beside_them(
    real_data: Path, tmp_path: Path, name: str
) -> None:
    item = json.loads((real_data / HERE / name).read_text())
    hrefs = [asset["href"] for asset in item["assets"].values()]
    raster = next(Path(h).name for h in hrefs if h.endswith("_QA_PIXEL.TIF"))
    make_product(tmp_path / "p", identity=raster.removesuffix("_QA_PIXEL.TIF"), spelling="json")
    shutil.copyfile(real_data / HERE / name, tmp_path / "p/item.json")
    product = opened(tmp_path / "p", tmp_path)
    expected = codes(raster[:4])
    assert {band: file.stem.split("_T")[1][2:] for band, file in product.bands.items()} == expected
    assert product.qa_radsat is not None


@pytest.mark.parametrize(
    ("name", "sun"),
    [
        ("LE07_L2SP_021030_20100109_02_T1", Sun(156.98419323, 21.38957268)),
        ("LC09_L2SP_010065_20220129_02_T1", Sun(112.2005908, 57.84396063)),
    ],
)
def test_a_real_item_tells_where_the_sun_stood_where_no_mtl_lies_beside_it(
    real_data: Path, tmp_path: Path, name: str, sun: Sun
) -> None:
    content = json.loads((real_data / HERE / f"stac_items/{name}.json").read_text())
    hrefs = [asset["href"] for asset in content["assets"].values()]
    raster = next(Path(href).name for href in hrefs if href.endswith("_QA_PIXEL.TIF"))
    make_product(tmp_path / "p", identity=raster.removesuffix("_QA_PIXEL.TIF"), spelling="")
    (tmp_path / "p/item.json").write_text(json.dumps(content))
    assert opened(tmp_path / "p", tmp_path).metadata.sun == sun


# --- spellings and packings ------------------------------------------------------------------


@pytest.mark.parametrize("sensor", ["LT04", "LT05", "LE07", "LC08", "LC09"])
@pytest.mark.parametrize("spelling", ["txt", "xml", "json"])
def test_bands_of_every_sensor_go_by_common_names(
    tmp_path: Path, sensor: str, spelling: str
) -> None:
    folder = make_product(tmp_path / "p", identity=product_id(sensor), spelling=spelling)
    product = opened(folder, tmp_path)
    for band, code in codes(sensor).items():
        assert product.bands[band].name.endswith(f"_{code}.TIF")
        assert product.scaling(band) == pytest.approx(scaling(code), rel=1e-12)


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_an_archive_is_unpacked_only_while_it_is_open(
    tmp_path: Path, suffix: str, mode: str
) -> None:
    folder = make_product(tmp_path / "p")
    archive = make_archive(tmp_path / f"a{suffix}", folder, mode=mode)
    with open_product(archive, tmp_path / "out") as product:
        assert rasterio.open(product.bands["green"]).shape == (48, 40)
        assert product.bands["green"].is_relative_to(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("keys", ["common", "files"])
@pytest.mark.parametrize("spelling", ["json", ""])
def test_an_item_names_its_bands_by_common_name_or_by_file(
    tmp_path: Path, keys: str, spelling: str
) -> None:
    folder = make_product(tmp_path / "p", spelling=spelling)
    item = make_item(folder, keys=keys, scaled=not spelling)
    for path in (item, folder):
        product = opened(path, tmp_path)
        assert set(product.bands) == set(codes("LC08"))
        assert product.scaling("lwir") == (0.00341802, 149.0)
        assert product.scaling("red") == pytest.approx(scaling("SR_B4"), rel=1e-12)
        assert product.id.text == product_id()
        assert product.metadata.sun == Sun(208.8, 38.4)


def test_an_item_finds_assets_renamed_beside_it_by_their_keys(tmp_path: Path) -> None:
    folder = make_product(tmp_path / "p", spelling="xml")
    item = make_item(folder)
    content = json.loads(item.read_text())
    for key, asset in content["assets"].items():
        if asset["href"].endswith(".TIF"):
            (folder / asset["href"]).rename(folder / f"{key}.tif")
            asset["href"] = f"{key}.tif"
    item.write_text(json.dumps(content))
    product = opened(item, tmp_path)
    assert product.bands["lwir"].name == "lwir11.tif"
    assert product.bands["blue"].name == "blue.tif"


# --- what is refused -------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        (member("../outside_MTL.txt"), "leads outside"),
        (member("p/../../outside.TIF"), "leads outside"),
        (member("/tmp/outside.TIF"), "leads outside"),
        (member("..\\outside.TIF"), "leads outside"),
        (member("a.TIF", tarfile.SYMTYPE, "/etc/passwd"), "a link or a device"),
        (member("a.TIF", tarfile.LNKTYPE, "b.TIF"), "a link or a device"),
        (member("a.TIF", tarfile.FIFOTYPE), "a link or a device"),
        (member("a.TIF", tarfile.CHRTYPE), "a link or a device"),
    ],
)
def test_an_archive_that_reaches_outside_is_refused_and_writes_nothing(
    tmp_path: Path, hostile: tarfile.TarInfo, words: str
) -> None:
    archive = make_archive(tmp_path / "a.tar", make_product(tmp_path / "p"))
    add_member(archive, hostile)
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "deep/out"
    with pytest.raises(InputError, match=words):
        opened(archive, out)
    assert list(out.iterdir()) == []
    assert sorted(tmp_path.rglob("*")) == sorted([*before, out, out.parent])


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / "a.tar", make_product(tmp_path / "p"))
    monkeypatch.setattr("glacier_core.landsat.archive._MOST_BYTES", 5000)
    with pytest.raises(InputError, match="unpacks to more than"):
        opened(archive, tmp_path / "out")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar", make_product(tmp_path / "p"))
    add_member(archive, member(f"other/{product_id()}_SR_B3.TIF"))
    with pytest.raises(InputError, match=r"SR_B3\.TIF twice"):
        opened(archive, tmp_path / "out")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garble(path: Path) -> None:
    path.write_bytes(b"not an archive" * 1000)


@pytest.mark.parametrize("harm", [cut, garble])
@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz")])
def test_a_corrupt_archive_is_refused(
    tmp_path: Path, harm: Callable[[Path], None], suffix: str, mode: str
) -> None:
    archive = make_archive(tmp_path / f"a{suffix}", make_product(tmp_path / "p"), mode=mode)
    harm(archive)
    with pytest.raises(InputError, match=rf"a{suffix}: .*download it anew"):
        opened(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (product_id(level="L1TP"), "level L1TP"),
        (product_id(collection="01"), "Collection 1"),
        (product_id("LM05"), "sensor LM05, whose bands are not known"),
        (product_id("LT08"), "sensor LT08, whose bands are not known"),
        (product_id(day="20151310"), "no calendar date"),
        ("something", "is not the id of a Landsat product"),
    ],
)
def test_products_of_another_kind_are_refused(tmp_path: Path, identity: str, words: str) -> None:
    folder = make_product(tmp_path / "p")
    mtl = next(folder.glob("*_MTL.txt"))
    text = mtl.read_text().replace(f'"{product_id()}"', f'"{identity}"')
    mtl.write_text(text)
    with pytest.raises(InputError, match=words):
        opened(folder, tmp_path)


def test_a_folder_without_mtl_is_refused(tmp_path: Path) -> None:
    folder = make_product(tmp_path / "p", spelling="")
    with pytest.raises(InputError, match="holds no MTL file"):
        opened(folder, tmp_path)


def test_a_folder_of_two_products_is_refused(tmp_path: Path) -> None:
    folder = make_product(tmp_path / "p")
    make_product(folder, identity=product_id(day="20150726"))
    with pytest.raises(InputError, match="holds 2 products"):
        opened(folder, tmp_path)


@pytest.mark.parametrize("lost", ["swir16", "QA_PIXEL"])
def test_a_product_without_a_needed_raster_is_refused(tmp_path: Path, lost: str) -> None:
    folder = make_product(tmp_path / "p", layers={lost: None})
    with pytest.raises(InputError, match=f"lacks {lost}"):
        opened(folder, tmp_path)


@pytest.mark.parametrize("spelling", ["json", ""])
def test_an_item_without_a_needed_asset_is_refused(tmp_path: Path, spelling: str) -> None:
    folder = make_product(tmp_path / "p", spelling=spelling)
    item = make_item(folder, scaled=True)
    next(folder.glob("*_SR_B6.TIF")).unlink()
    with pytest.raises(InputError, match=r"lacks swir16 \(SR_B6\)"):
        opened(item, tmp_path)


def test_an_item_without_mtl_and_without_scale_is_refused(tmp_path: Path) -> None:
    folder = make_product(tmp_path / "p", spelling="")
    with pytest.raises(InputError, match=r"no scale and offset for SR_B2.*mtl\.json"):
        opened(make_item(folder), tmp_path)


def test_an_item_opens_nothing_outside_its_folder(tmp_path: Path) -> None:
    folder = make_product(tmp_path / "p")
    item = make_item(folder)
    stolen = shutil.move(next(folder.glob("*_SR_B3.TIF")), tmp_path / "elsewhere_SR_B3.TIF")
    for href in ("../elsewhere_SR_B3.TIF", str(stolen), f"file://{stolen}"):
        content = json.loads(item.read_text())
        content["assets"]["green"]["href"] = href
        item.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"lacks green \(SR_B3\)"):
            opened(item, tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"assets": 3}', '{"type": "Feature", "assets": {}}', "[" * 100_000]
)
def test_what_is_no_stac_item_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "item.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a STAC item"):
        opened(path, tmp_path)


@pytest.mark.parametrize(
    ("spelling", "text"),
    [
        ("txt", "GROUP = A\n  B = 3\n"),
        ("txt", "GROUP = A\nEND_GROUP = B\n"),
        ("txt", ""),
        ("xml", '<!DOCTYPE a [<!ENTITY x "xx">]><a><b>&x;</b></a>'),
        ("xml", "<a><b>"),
        ("json", "{"),
        ("json", "[1, 2]"),
        ("json", '{"a": {}, "b": {}}'),
    ],
)
def test_a_broken_mtl_is_refused(tmp_path: Path, spelling: str, text: str) -> None:
    folder = make_product(tmp_path / "p", spelling=spelling)
    next(folder.glob("*_MTL.*")).write_text(text)
    with pytest.raises(InputError, match="is not an MTL file of Landsat"):
        opened(folder, tmp_path)


@pytest.mark.parametrize("value", ["", "REFLECTANCE_MULT_BAND_3 = much"])
def test_an_mtl_without_a_level_2_coefficient_does_not_take_that_of_level_1(
    tmp_path: Path, value: str
) -> None:
    folder = make_product(tmp_path / "p")
    mtl = next(folder.glob("*_MTL.txt"))
    first = next(line for line in mtl.read_text().splitlines() if "MULT_BAND_3" in line)
    mtl.write_text(mtl.read_text().replace(first, value, 1))
    assert "REFLECTANCE_MULT_BAND_3" in mtl.read_text()
    with pytest.raises(InputError, match=r"LEVEL2_SURFACE_REFLECTANCE_PARAMETERS.*MULT_BAND_3"):
        opened(folder, tmp_path)


# --- rasters at fault, through the command line ----------------------------------------------


def other_grid(file: Path) -> None:
    make_scene(
        file,
        bands=[None],
        values=np.full((1, 48, 40), 9000),
        dtype="uint16",
        transform=north_up(500_040.0),
    )


def other_shape(file: Path) -> None:
    make_scene(file, bands=[None], values=np.full((1, 47, 40), 9000), dtype="uint16")


def no_crs(file: Path) -> None:
    make_scene(file, bands=[None], values=np.full((1, 48, 40), 9000), dtype="uint16", crs=None)


def as_float(file: Path) -> None:
    make_scene(file, bands=[None], values=np.full((1, 48, 40), 0.3), dtype="float32")


def as_vrt(file: Path) -> None:
    file.write_text(
        '<VRTDataset rasterXSize="40" rasterYSize="48"><VRTRasterBand dataType="UInt16" band="1"/>'
        "</VRTDataset>"
    )


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (other_grid, "pixels lie otherwise than those of"),
        (other_shape, "pixels lie otherwise than those of"),
        (no_crs, "no coordinate reference system"),
        (as_float, "expected one band of uint16"),
        (as_vrt, "cannot be opened as a GeoTIFF"),
        (cut, "cut off|cannot be opened"),
    ],
)
def test_a_raster_at_fault_gives_one_line_and_no_scene(
    tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    project = landsat_project(tmp_path)
    folder = make_product(tmp_path / "p")
    harm(next(folder.glob("*_SR_B5.TIF")))
    done = glacier(project.root, "ingest", str(folder), "--out", "out")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "SR_B5.TIF" in line
    assert any(word in line for word in words.split("|"))
    assert not list((project.root / "out").glob("**/*.tif"))
