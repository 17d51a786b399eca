"""Functions in the place of `Task.prepare` that other processes can import, and quickly."""

import os
import time

import tensorflow as tf


def plain(batch, uniform, training):
    return {**batch, "random": uniform(3)}


def late(batch, uniform, training):
    """Some batches take longer than others, so that they overtake each other where they can."""

    def wait(number):
        time.sleep(0.02 * (number % 3 == 0))
        return number

    return {"number": tf.ensure_shape(tf.numpy_function(wait, [batch["number"][0]], tf.int64), ())}


def fails(batch, uniform, training):
    raise ZeroDivisionError("by zero")


def dies(batch, uniform, training):
    os._exit(3)
