"""Compiling a recipe's train step for a TPU on a machine without one.

`abstract.py` builds the step without taking memory, `lowering.py` turns it into HLO and looks for
what no TPU can run, `compiler.py` hands that to libtpu in a process of its own, `check.py` asks for
as many compilations as the answer takes. docs/tpu_check.md says what is covered and what is not.
"""
