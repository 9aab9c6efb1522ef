"""The client's decisions: what is pending, what is wanted, what is told to the scheduler."""
