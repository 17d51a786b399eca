"""Strategies, worker processes and preemption."""
