"""The keys of conf/landsat.yaml: how Landsat products become scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from glacier_core.landsat.apis import ApisConf, AreaConf
from glacier_core.settings import Checked

if TYPE_CHECKING:
    from glacier_core.config import Project

Band = Literal["coastal", "blue", "green", "red", "nir08", "swir16", "swir22", "lwir"]
Index = Literal["NDSI", "NDVI", "NDWI"]


class LandsatConf(Checked):
    bands: Annotated[list[Band], Field(min_length=1)]
    indices: list[Index]
    harmonise: Literal["none", "roy2016"]
    dem_path: str | None
    dem_resampling: Literal["bilinear", "cubic"]
    apis: ApisConf
    areas: dict[str, AreaConf]

    @field_validator("bands", "indices")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError(f"a name stands twice in {value}")
        return value


def landsat_settings(project: Project) -> LandsatConf:
    """conf/landsat.yaml of a project.

    Raises:
        InputError: missing, or a key is wrong.
    """
    from glacier_core.config import check, read_yaml

    path = project.root / "conf/landsat.yaml"
    return check(LandsatConf, read_yaml(path), path)
