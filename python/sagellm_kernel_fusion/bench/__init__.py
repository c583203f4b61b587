"""Measurements: fused against unfused, on cases and on whole models, each checked in the same run."""
