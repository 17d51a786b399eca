"""Compiles a recipe's train step for a TPU on a machine without a TPU.

`abstract.py` builds the step without allocating memory, `lowering.py` lowers it to HLO and checks
for operations that no TPU supports, `compiler.py` compiles the HLO with libtpu in a separate
process, and `check.py` runs the compilations and evaluates them. See docs/tpu_check.md for what the
check covers.
"""
