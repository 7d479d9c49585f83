"""Generating and scoring with many adapters in one batch."""
