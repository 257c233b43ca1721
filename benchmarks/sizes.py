"""How large everything is: as in the field, and small enough for a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SEED = 1
CLASSES = ("clean_ice", "debris")
SCENE = "LE07_BENCH_20101106"
YEAR = 2010


@dataclass(frozen=True)
class Size:
    """All that differs between the full benchmark and the small one.

    Attributes:
        name: of its folder in the cache.
        height, width: pixels of the scene.
        tile: edge of the simulated pictures that it is pieced together from, pixels.
        outlines: how many, of the scene and of the test of linearity.
        outline_km2: median area of one.
        slice: edge of a slice, pixels.
        block_km: edge of the blocks that are split.
        network: depth and channels at full resolution.
        model: epochs, crops a slice, and their edge, of the model that maps.
        steps: of the reference's training: warm-up, counted.
        passes: of the network alone: warm-up, counted.
        scenes: tiny ones, for what many scenes cost.
        repeat: measurements of each side, the median of which counts.
    """

    name: str
    height: int
    width: int
    tile: int
    outlines: tuple[int, int]
    outline_km2: float
    slice: int
    block_km: float
    network: tuple[int, int]
    model: tuple[int, int, int]
    steps: tuple[int, int]
    passes: tuple[int, int]
    scenes: int
    repeat: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def params(self) -> dict[str, Any]:
        """What of params.yaml is the benchmark's own; all else is as shipped."""
        depth, base_channels = self.network
        return {
            "seed": SEED,
            "slice": {"size": self.slice, "overlap": 6},
            "postprocess": {"block_km": self.block_km},
            # Whole slices, once an epoch, as the reference shows them. The first epoch warms up.
            "train": {
                "run_name": "bench",
                "epochs": 2,
                "patience": 2,
                "crops_per_slice": 1,
                "crop_size": None,
                "depth": depth,
                "base_channels": base_channels,
            },
        }


# A Landsat scene of the Hindu Kush Himalaya, and the network of the published reference.
FULL = Size(
    name="full",
    height=7000,
    width=7800,
    tile=1018,
    outlines=(3000, 30000),
    outline_km2=0.35,
    slice=512,
    block_km=60,
    network=(5, 16),
    model=(8, 8, 256),
    steps=(2, 5),
    passes=(3, 12),
    scenes=35,
    repeat=3,
)

SMALL = Size(
    name="small",
    height=1000,
    width=1100,
    tile=250,
    outlines=(150, 1500),
    outline_km2=0.35,
    slice=128,
    block_km=10,
    network=(5, 8),
    model=(4, 4, 128),
    steps=(1, 2),
    passes=(1, 2),
    scenes=3,
    repeat=1,
)

SIZES = {size.name: size for size in (FULL, SMALL)}
