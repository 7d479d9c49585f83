"""Measurements of CultureManager beside its rivals: one file a benchmark."""

from culturemanager.cluster import prepare_environment

# Before anything imports transformers or Ray, which read it once.
prepare_environment()
