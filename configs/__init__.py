"""Recipes: one file per experiment, `get_config(arg)`, with command, time and result on top."""
