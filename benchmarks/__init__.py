"""Measurements of CultureManager beside its rivals: one file a benchmark."""
