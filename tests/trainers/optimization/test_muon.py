"""Muon, the variables that it trains with AdamW, and weight decay."""

import re

import keras
import numpy as np
import pytest
from keras import layers

from tests import toys
from trainers.config.base import optimizer
from trainers.config.optimizer import OPTIMIZERS
from trainers.optimization.muon import output_layers, variables_for_adamw
from zoo import registry
from zoo.catalog import CATALOG
from zoo.description import build_abstract
from zoo.errors import UsageError

DEFAULTS = {key: OPTIMIZERS["muon"][key] for key in OPTIMIZERS["muon"] if "exclude" in key}
del DEFAULTS["weight_decay_exclude"]
# Matrices of output layers, embeddings and depthwise kernels in tiny models, which AdamW trains.
EXPECTED = {
    "cnn_classifier": {"probabilities/kernel"},
    "gpt_nano": {"embedding/embeddings", "positions/embeddings"},
    "llama_nano": {"embedding/embeddings"},
    "moe_nano": {"embedding/embeddings"} | {
        f"block_{i}/feed_forward/router/kernel" for i in range(2)
    },
    "looped_nano": {"embedding/embeddings"},
    "reformer_nano": {
        "embedding/embeddings", "positions/rows", "positions/columns", "projection/kernel",
    },
    "axial_image_nano": {
        "embedding/embeddings", "positions/rows", "positions/columns", "projection/kernel",
    },
    "retro_nano": {"embedding/embeddings"},
    "axial_features_nano": {"embedding/embeddings", "positions/embeddings"},
    "lstm_generator": {"embedding/embeddings", "probabilities/kernel"},
    "transformer_tiny": {"embedding/embeddings"},
    "bert_tiny": {
        "embedding/embeddings", "type_embedding/embeddings", "positions/embeddings", "nsp/kernel",
    },
    "roberta_base": {"embedding/embeddings", "positions/embeddings"},
    "longformer_nano": {"embedding/embeddings", "positions/embeddings"},
    "encoder_nano": {"embedding/embeddings", "neighbors_0/kernel", "neighbors_1/kernel"},
    "electra_nano": {
        "embedding/embeddings", "neighbors_0/kernel", "neighbors_1/kernel",
        "generator_neighbors_0/kernel", "generator_neighbors_1/kernel", "rtd_logits/kernel",
    },
    "linear_text": {"ngrams/embeddings", "overlap/kernel"},
    "gan_mnist": {"pixels/kernel", "logit/kernel"},
    "dcgan_mnist": {"logit/kernel"},
    "vgg16_transfer": {"probabilities/kernel"},
}  # fmt: skip


def matrices(models, variables, **changes):
    adamw_variables = variables_for_adamw(models, variables, **{**DEFAULTS, **changes})
    return {v.path for v in adamw_variables if len(v.shape) == 2}


@pytest.mark.parametrize("name", EXPECTED)
def test_heads_and_embeddings_of_every_family(name):
    row = registry.entry(name)
    model = build_abstract(name, **row.tiny)
    task = registry.build_task(row.task, **row.task_arguments)
    paths = set()
    for part in task.model_parts(model):
        paths |= matrices([part.model, model], part.model.trainable_variables)
    assert paths == EXPECTED[name]
    assert {x.name for x in CATALOG if x.tiny} == set(EXPECTED)


def test_an_untied_projection_is_an_output_too():
    arguments = {**registry.entry("gpt_nano").tiny, "tie_weights": False}
    model = build_abstract("gpt_nano", **arguments)
    outputs = matrices([model], model.trainable_variables, exclude_embeddings=False)
    assert {"embedding/reverse_embeddings"} <= outputs
    assert "positions/embeddings" not in outputs


def test_names_decide_nothing():
    """Muon trains a hidden layer named embedding, but not an embedding named table."""
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 8, name="table")(tokens)
    x = layers.Dense(8, name="embedding_projection")(layers.Flatten()(x))
    one = layers.LayerNormalization(name="scale")(layers.Dense(3, name="one")(x))
    one = layers.Activation("relu")(one)
    two = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, name="inside"), layers.Dense(2, name="two")]
    )
    model = keras.Model(tokens, {"one": one, "two": layers.Softmax()(two(x))})
    assert {layer.name for layer in output_layers(model)} == {"one", "two"}
    variables = model.trainable_variables
    assert matrices([model], variables) == {
        "table/embeddings",
        "one/kernel",
        f"{two.name}/two/kernel",
    }
    assert matrices([model], variables, exclude_outputs=False) == {"table/embeddings"}
    assert matrices([model], variables, exclude="inside|projection") == {
        "table/embeddings", "one/kernel", f"{two.name}/two/kernel", f"{two.name}/inside/kernel",
        "embedding_projection/kernel",
    }  # fmt: skip


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.hidden, self.last = layers.Dense(4, name="hidden"), layers.Dense(3, name="last")

    def call(self, x):
        return self.last(self.hidden(x))


def test_a_subclassed_model_must_name_its_output_layer():
    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(UsageError, match="must not train output layers.* Received: model 'own'"):
        matrices([model], model.trainable_variables)
    assert matrices([model], model.trainable_variables, exclude="last/") == {"own/last/kernel"}
    assert not matrices([model], model.trainable_variables, exclude_outputs=False)


def test_a_run_trains_them_by_adamw(run):
    """AdamW has a second moment per variable, Muon does not."""
    config = toys.recipe(steps=2)
    config.optimizer = optimizer("muon", learning_rate=0.01, weight_decay=0.1)
    step = run(config, toys.token_data()).step
    has = {
        v.path
        for v, second in zip(
            step.net.trainable_variables, step.optimizers[0].adam_velocities, strict=True
        )
        if second is not None
    }
    assert {v.path for v in step.net.trainable_variables if len(v.shape) == 2} - has == {
        f"block_{i}/{part}/kernel" for i in (0, 1) for part in ("up", "down")
    }


@pytest.mark.parametrize(
    ("path", "excluded"),
    [
        ("block_1/norm/scale", True), ("norm_1/weight", True), ("a/bias", True),
        ("batch_normalization/gamma", True), ("normal/kernel", False),
        ("norm_head/kernel", False), ("weight_norm/dense/kernel", False),
        ("spectral_norm/recurrent_kernel", False), ("norms/embeddings", False),
    ],
)  # fmt: skip
def test_decay_reaches_kernels_in_layers_that_are_called_like_norms(path, excluded):
    pattern = OPTIMIZERS["adamw"]["weight_decay_exclude"]
    assert bool(re.search(pattern, path)) == excluded
