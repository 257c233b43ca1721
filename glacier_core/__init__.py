"""Mapping clean and debris-covered ice in Landsat images: the science, without orchestration."""
