"""Inputs that are computed once: features of a frozen base."""
