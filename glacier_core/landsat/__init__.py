"""Landsat Collection 2 Level-2 products: from what USGS delivers to scenes with named bands."""
