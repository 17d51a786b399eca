"""How the zoo's models learn: one trainer for all of them."""

from zoo import logs  # imports zoo before any module here imports TensorFlow: see zoo/quiet.py

logs.install("trainers")
