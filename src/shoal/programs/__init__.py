"""Wire a core to a driver: the scheduler, worker and nanny programs."""
