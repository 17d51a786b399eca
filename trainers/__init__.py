"""How the zoo's models learn: one trainer for all of them."""

import zoo  # noqa: F401  before any module here imports TensorFlow: see zoo/quiet.py
