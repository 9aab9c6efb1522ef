"""The nanny's decisions: when its worker process is started, killed, revived, given up."""
