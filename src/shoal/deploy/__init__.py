"""Clusters: what starts schedulers and workers."""
