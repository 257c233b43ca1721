"""What is known of a scene's mask: `mask_metadata.csv`, a row."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from glacier_core.errors import InputError

_NAME = "mask_metadata.csv"


def write_metadata(folder: Path, row: Mapping[str, object]) -> None:
    """Write a mask's row into its folder."""
    with (folder / _NAME).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        writer.writeheader()
        writer.writerow(row)


def read_metadata(folder: Path) -> dict[str, str]:
    """The row of a scene's `mask_metadata.csv`.

    Raises:
        InputError: the scene is not masked yet.
    """
    try:
        with (folder / _NAME).open(newline="") as file:
            return next(csv.DictReader(file))
    except FileNotFoundError:
        raise InputError(
            f"{folder / 'mask_metadata.csv'}: no such file; run `glacier mask` first"
        ) from None
