"""The scheduler's decisions: who computes what, where, and what may be forgotten."""
