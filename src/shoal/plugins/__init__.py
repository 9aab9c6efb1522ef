"""Code of users that is hooked into schedulers, workers and nannies; registered with ``Client.register_plugin``."""
