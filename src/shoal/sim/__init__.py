"""A cluster of the real cores in virtual time, in one process, from one seed: ``shoal sim``."""
