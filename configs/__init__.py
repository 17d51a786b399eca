"""Recipes: one file an experiment, `get_config(arg)`, with command, time and result on top."""
