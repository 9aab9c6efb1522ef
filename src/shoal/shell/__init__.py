"""All input and output: thin, without decisions. A shell moves bytes, threads, processes and timers for a core."""
