"""Distribution strategies, groups of workers, and preemption."""
