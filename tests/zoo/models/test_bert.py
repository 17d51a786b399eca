"""BERT and RoBERTa: equal outputs to the published networks, and effects of the inputs."""

import inspect

import keras
import numpy as np
import pytest

from tests.third_party import third_party
from trainers.config.recipe import resolve
from trainers.optimization.precision import precision
from zoo import registry
from zoo.catalog import CATALOG
from zoo.errors import UsageError
from zoo.models import bert

V, T = 30, 12
SIZES = {"vocabulary_size": V, "sequence_length": T, "num_layers": 2, "hidden_dim": 16,
         "num_heads": 4, "intermediate_dim": 24}  # fmt: skip


def random_weights(model, seed=0):
    """Sets every weight far from its initial value, so that each affects the outputs."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(generator.normal(0.2, 0.3, weight.shape))
    return model


def examples(rows=3, masked=4, types=True, seed=0):
    """Returns inputs with rows of 12, 9 and 5 tokens."""
    generator = np.random.default_rng(seed)
    sizes = np.array([[12], [9], [5]])[:rows]
    inside = np.arange(T) < sizes
    inputs = {
        "tokens": np.where(inside, generator.integers(6, V, (rows, T)), 0),
        "segments": inside.astype(int),
        "types": (inside & (np.arange(T) >= sizes // 2)).astype(int),
        "masked": np.stack([generator.permutation(5)[:masked] for _ in range(rows)]),
    }
    if not types:
        del inputs["types"]
    return {name: value.astype("int32") for name, value in inputs.items()}


def run(model, inputs):
    return {name: value.numpy() for name, value in model(inputs, training=False).items()}


# --- the published network ------------------------------------------------------------------------


def copy_from(model, other, first_position=0):
    """Copies weights of transformers' BertForPreTraining or RobertaForMaskedLM to a model."""
    state = {name: value.numpy() for name, value in other.state_dict().items()}
    prefix = other.base_model_prefix
    roberta = prefix == "roberta"
    head = "lm_head" if roberta else "cls.predictions"
    transform = head if roberta else f"{head}.transform"
    embeddings = f"{prefix}.embeddings"
    paths = {
        "embedding/embeddings": f"{embeddings}.word_embeddings.weight",
        "type_embedding/embeddings": f"{embeddings}.token_type_embeddings.weight",
        "positions/embeddings": f"{embeddings}.position_embeddings.weight",
        "embedding_norm/gamma": f"{embeddings}.LayerNorm.weight",
        "embedding_norm/beta": f"{embeddings}.LayerNorm.bias",
        "transform/kernel": f"{transform}.dense.weight",
        "transform/bias": f"{transform}.dense.bias",
        "transform_norm/gamma": f"{transform}.{'layer_norm' if roberta else 'LayerNorm'}.weight",
        "transform_norm/beta": f"{transform}.{'layer_norm' if roberta else 'LayerNorm'}.bias",
        "mlm/bias": f"{head}.bias",
        "pooler/kernel": f"{prefix}.pooler.dense.weight",
        "pooler/bias": f"{prefix}.pooler.dense.bias",
        "nsp/kernel": "cls.seq_relationship.weight",
        "nsp/bias": "cls.seq_relationship.bias",
    }
    for i in range(SIZES["num_layers"]):
        layer = f"{prefix}.encoder.layer.{i}"
        for ours, theirs in {
            "attention/query_key_value": [f"attention.self.{k}" for k in ("query", "key", "value")],
            "attention/output": ["attention.output.dense"],
            "attention_norm": ["attention.output.LayerNorm"],
            "feed_forward/up": ["intermediate.dense"],
            "feed_forward/down": ["output.dense"],
            "feed_forward_norm": ["output.LayerNorm"],
        }.items():
            names = ("gamma", "beta") if ours.endswith("norm") else ("kernel", "bias")
            for our_name, their_name in zip(names, ("weight", "bias"), strict=True):
                paths[f"block_{i}/{ours}/{our_name}"] = [
                    f"{layer}.{part}.{their_name}" for part in theirs
                ]
    unused = set(state)
    for weight in model.weights:
        names = paths[weight.path.removeprefix(f"{model.name}/")]
        names = [names] if isinstance(names, str) else names
        values = [state[name] for name in names]
        if weight.path.endswith("kernel"):
            values = [value.T for value in values]
        value = np.concatenate(values, -1)
        if weight.path.endswith("positions/embeddings"):
            value = value[first_position:]
        weight.assign(value)
        unused -= set(names)
    return unused


def their_outputs(torch, model, inputs):
    """Returns (logits of every position, logits of the pair or None)."""
    arguments = {"input_ids": inputs["tokens"], "attention_mask": inputs["segments"]}
    if "types" in inputs:
        arguments["token_type_ids"] = inputs["types"]
    with third_party(), torch.no_grad():
        outputs = model.eval()(**{k: torch.tensor(v).long() for k, v in arguments.items()})
    if "types" in inputs:
        return outputs.prediction_logits.numpy(), outputs.seq_relationship_logits.numpy()
    return outputs.logits.numpy(), None


def their_config(transformers, kind, **more):
    return getattr(transformers, kind)(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, **more,
    )  # fmt: skip


def randomize(torch, model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, 0.1, 0.3)
    model.tie_weights()
    return model


def test_same_outputs_as_transformers_bert(torch, transformers):
    with third_party():
        config = their_config(transformers, "BertConfig", max_position_embeddings=T)
        theirs = randomize(torch, transformers.BertForPreTraining(config))
    ours = random_weights(bert.build(**SIZES))
    unused = copy_from(ours, theirs)
    # Copies of tied weights, and constants.
    assert unused <= {
        "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
        "bert.embeddings.position_ids", "bert.embeddings.token_type_ids",
    }  # fmt: skip
    inputs = examples()
    words, pair = their_outputs(torch, theirs, inputs)
    outputs = run(ours, inputs)
    at_masked = np.take_along_axis(words, inputs["masked"][..., None], 1)
    np.testing.assert_allclose(outputs["mlm"], at_masked, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs["nsp"], pair, rtol=1e-4, atol=1e-4)


def test_same_outputs_as_transformers_roberta(torch, transformers):
    with third_party():
        config = their_config(
            transformers, "RobertaConfig", max_position_embeddings=T + 1, type_vocab_size=1,
            layer_norm_eps=1e-5, pad_token_id=0,
        )  # fmt: skip
        theirs = randomize(torch, transformers.RobertaForMaskedLM(config))
    # This weight is not in the authors' model; their converter sets it to zero.
    theirs.roberta.embeddings.token_type_embeddings.weight.data.zero_()
    ours = random_weights(bert.build(**SIZES, next_sentence=False, epsilon=1e-5))
    # RoBERTa's positions begin after the padding id, which is 0 here.
    copy_from(ours, theirs, first_position=1)
    inputs = examples(types=False)
    words, _ = their_outputs(torch, theirs, inputs)
    at_masked = np.take_along_axis(words, inputs["masked"][..., None], 1)
    np.testing.assert_allclose(run(ours, inputs)["mlm"], at_masked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", [r for r in CATALOG if r.family == "bert"], ids=lambda r: r.name)
def test_the_counts_of_the_catalog_are_those_of_transformers(torch, transformers, row):
    roberta = row.name.startswith("roberta")
    width = row.arguments["hidden_dim"]
    sizes = {
        "hidden_size": width, "num_hidden_layers": row.arguments["num_layers"],
        "num_attention_heads": width // 64, "intermediate_size": 4 * width,
    }  # fmt: skip
    if roberta:
        sizes.update(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
    config, kind = ("Roberta", "MaskedLM") if roberta else ("Bert", "ForPreTraining")
    kind = f"{config}For{kind}" if roberta else f"{config}{kind}"
    with third_party(), torch.device("meta"):
        model = getattr(transformers, kind)(getattr(transformers, f"{config}Config")(**sizes))
    # The one sentence type that transformers' RoBERTa adds is not in the authors' model.
    extra = width if roberta else 0
    assert sum(p.numel() for p in model.parameters()) - extra == row.parameters


# --- what the inputs mean -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return random_weights(bert.build(**SIZES))


def test_padding_is_never_attended(model):
    inputs = examples()
    changed = {k: v.copy() for k, v in inputs.items()}
    padding = inputs["segments"] == 0
    changed["tokens"][padding] = 17
    changed["types"][padding] = 1
    before, after = run(model, inputs), run(model, changed)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    changed["tokens"][:, 4] += 1  # changed tokens change the outputs
    assert (np.abs(run(model, changed)["mlm"] - before["mlm"]).max((1, 2)) > 1e-3).all()


def test_a_document_does_not_attend_to_its_neighbor(model):
    inputs = examples()
    inputs["segments"] = np.where(inputs["segments"] > 0, 1 + (np.arange(T) >= 3), 0)
    inputs["masked"] = np.array([[0, 1, 2]] * 3, "int32")
    changed = {**inputs, "tokens": np.where(np.arange(T) >= 3, 9, inputs["tokens"])}
    np.testing.assert_array_equal(run(model, inputs)["mlm"], run(model, changed)["mlm"])


def test_words_are_predicted_where_they_are_asked_for(model):
    inputs = examples()
    every = {**inputs, "masked": np.array([range(T)] * 3, "int32")}
    whole, some = run(model, every)["mlm"], run(model, inputs)["mlm"]
    assert some.shape == (3, 4, V)
    at_masked = np.take_along_axis(whole, inputs["masked"][..., None], 1)
    np.testing.assert_allclose(some, at_masked, rtol=1e-5, atol=1e-5)


def test_the_pair_is_judged_by_the_first_position(model):
    inputs = examples(rows=1)
    alone = {**inputs, "segments": np.array([[1] + [2] * (T - 1)], "int32")}
    other = {**alone, "tokens": inputs["tokens"] * (np.arange(T) < 1)}
    np.testing.assert_array_equal(run(model, alone)["nsp"], run(model, other)["nsp"])
    assert np.abs(run(model, alone)["nsp"] - run(model, inputs)["nsp"]).max() > 1e-3


def test_sentence_types_count(model):
    inputs = examples()
    swapped = {**inputs, "types": 1 - inputs["types"]}
    before, after = run(model, inputs), run(model, swapped)
    assert np.abs(before["nsp"] - after["nsp"]).max() > 1e-3
    assert np.abs(before["mlm"] - after["mlm"]).max() > 1e-3


def test_without_next_sentence_there_is_one_head_and_no_types():
    small = bert.build(**SIZES, next_sentence=False)
    assert {tensor.name for tensor in small.inputs} == {"tokens", "segments", "masked"}
    assert set(run(small, examples(types=False))) == {"mlm"}
    names = {layer.name for layer in small.layers}
    assert not names & {"type_embedding", "pooler", "nsp"}


def test_logits_are_float32_in_mixed_precision():
    with precision("mixed_bfloat16"):
        mixed = bert.build(**SIZES)
    assert mixed.get_layer("block_0").compute_dtype == "bfloat16"
    assert {value.dtype for value in run(mixed, examples()).values()} == {np.dtype("float32")}


def test_depth_sets_the_sizes():
    model = registry.build("bert_tiny", **{**dict.fromkeys(("num_layers", "hidden_dim"), 0),
                                             "depth": 3, "vocabulary_size": V})  # fmt: skip
    assert [layer.name for layer in model.layers if layer.name.startswith("block_")] == [
        "block_0", "block_1", "block_2",
    ]  # fmt: skip
    settings = model.get_layer("block_0").settings
    assert (settings["hidden_dim"], settings["num_heads"]) == (192, 3)
    assert settings["intermediate_dim"] == 768


def test_no_size_is_refused():
    with pytest.raises(UsageError, match="both num_layers and hidden_dim must be positive"):
        registry.build("bert_tiny", num_layers=0, hidden_dim=0)


# --- its recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["", ":debug"])
def test_the_recipe_names_every_argument(variant):
    config = resolve(f"bert_wiki{variant}")
    task = registry.resolve(registry._tasks[config.task.name])
    for section, function in ((config.model, bert.build), (config.task, task)):
        assert set(section) - {"name"} == set(inspect.signature(function).parameters) - {"name"}
