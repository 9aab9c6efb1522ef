"""What users hold: Client, Future."""
