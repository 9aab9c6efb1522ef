"""What shows how a computation goes: progress bars, reports, samples of memory, spans."""
