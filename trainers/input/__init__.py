"""Inputs that are computed once per run: features of a frozen base model."""
