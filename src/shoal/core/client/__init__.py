"""The client's decisions: what is known of each key that it wants, and what it says to the scheduler."""
