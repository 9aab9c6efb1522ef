"""The worker's decisions: what to fetch, run, hold and drop."""
