"""Training of all models: one trainer, with configuration, evaluation and export."""

from zoo import logs  # imports zoo before any module here imports TensorFlow: see zoo/quiet.py

logs.install("trainers")
