"""The keys of conf/landsat.yaml: how Landsat products become scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from glacier_core.landsat.apis import ApisConf, AreaConf
from glacier_core.settings import Checked

if TYPE_CHECKING:
    from glacier_core.config import Project

Band = Literal["coastal", "blue", "green", "red", "nir08", "swir16", "swir22", "lwir"]
Index = Literal["NDSI", "NDVI", "NDWI"]


class DemCollectionConf(Checked):
    """A DEM as a collection of a STAC API, an item a tile.

    Attributes:
        api: one of `apis.known`.
        collection: its id there; also the name of its folder here.
        asset: the heights among the assets of an item.
    """

    api: str
    collection: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$")]
    asset: Annotated[str, Field(min_length=1)]


class LandsatConf(Checked):
    bands: Annotated[list[Band], Field(min_length=1)]
    indices: list[Index]
    harmonise: Literal["none", "roy2016"]
    dem_path: str | None
    dem_collection: DemCollectionConf | None
    dem_resampling: Literal["bilinear", "cubic"]
    apis: ApisConf
    areas: dict[str, AreaConf]
    self_training: bool

    @field_validator("bands", "indices")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError(f"a name stands twice in {value}")
        return value

    @model_validator(mode="after")
    def _one_dem(self) -> LandsatConf:
        if self.dem_collection is None:
            return self
        if self.dem_path is not None:
            raise ValueError(
                f"dem_path ({self.dem_path}) and dem_collection "
                f"({self.dem_collection.collection}) are both given; set one of them to null"
            )
        if self.dem_collection.api not in self.apis.known:
            raise ValueError(
                f"dem_collection.api: apis.known has no '{self.dem_collection.api}'; there are "
                f"{', '.join(self.apis.known)}"
            )
        return self


def landsat_settings(project: Project) -> LandsatConf:
    """conf/landsat.yaml of a project.

    Raises:
        InputError: missing, or a key is wrong.
    """
    from glacier_core.config import check, read_yaml

    path = project.root / "conf/landsat.yaml"
    return check(LandsatConf, read_yaml(path), path)
