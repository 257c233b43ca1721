"""Prefect flows: they name the steps, wait, retry and report. The work is glacier_core's."""
