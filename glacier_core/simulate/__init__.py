"""Himalayan Landsat 7 scenes with known truth, for the demo and the tests.

Read on in this order: ``terrain`` (mountains), ``glaciers`` (ice and rubble), ``ground`` (one
site at 30 m), ``surface`` (what a day puts on it), ``sensor`` (what Landsat 7 makes of it),
``outlines`` (what experts draw), ``scenes`` (files).
"""

from glacier_core.simulate.scenes import BAND_NAMES, SimulatedScene, simulate

__all__ = ["BAND_NAMES", "SimulatedScene", "simulate"]
