"""What programs on a cluster meet at: locks, semaphores, events, queues, variables."""
