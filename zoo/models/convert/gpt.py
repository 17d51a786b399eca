"""GPT-2 in other libraries: GPT2LMHeadModel of transformers and GPT2Backbone of KerasHub."""

from collections.abc import Mapping

from zoo.errors import UsageError
from zoo.models import gpt
from zoo.models.convert.family import Config, Family, tensors, tied


def _read(config: Config) -> dict:
    hidden_dim = config.size("n_embd")
    dropout = config.number("resid_pdrop", 0.1)
    for key in ("embd_pdrop", "attn_pdrop"):
        value = config.number(key, 0.1)
        if value != dropout:
            config.refuse(key, value, f"only one dropout rate, and resid_pdrop is {dropout}")
    # Both are the tanh approximation (Hendrycks, Gimpel 2016); "gelu" is the exact function.
    config.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
    config.expect("layer_norm_epsilon", 1e-5)
    config.expect("scale_attn_weights", True)
    config.expect("scale_attn_by_inverse_layer_idx", False)
    config.expect("add_cross_attention", False)
    return {
        "vocabulary_size": config.size("vocab_size"),
        "sequence_length": config.size("n_positions"),
        "num_layers": config.size("n_layer"),
        "hidden_dim": hidden_dim,
        "num_heads": config.size("n_head"),
        "intermediate_dim": config.size("n_inner", 4 * hidden_dim),
        "dropout": dropout,
        "tie_weights": config.flag("tie_word_embeddings", True),
    }


def _write(arguments: Mapping) -> dict:
    return {
        "vocab_size": arguments["vocabulary_size"],
        "n_positions": arguments["sequence_length"],
        "n_layer": arguments["num_layers"],
        "n_embd": arguments["hidden_dim"],
        "n_head": arguments["num_heads"],
        "n_inner": arguments["intermediate_dim"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": arguments["dropout"],
        "embd_pdrop": arguments["dropout"],
        "attn_pdrop": arguments["dropout"],
        "tie_word_embeddings": arguments["tie_weights"],
    }


def _read_backbone(backbone) -> dict:
    return {
        "vocabulary_size": backbone.vocabulary_size,
        "sequence_length": backbone.max_sequence_length,
        "num_layers": backbone.num_layers,
        "hidden_dim": backbone.hidden_dim,
        "num_heads": backbone.num_heads,
        "intermediate_dim": backbone.intermediate_dim,
        "dropout": backbone.dropout,
        "tie_weights": backbone.token_embedding.tie_weights,
    }


def _write_backbone(arguments: Mapping) -> dict:
    if not arguments["tie_weights"]:
        raise UsageError("KerasHub's GPT-2 requires model.tie_weights=True. Received: False.")
    names = ("vocabulary_size", "num_layers", "hidden_dim", "num_heads", "intermediate_dim")
    return {
        **{name: arguments[name] for name in (*names, "dropout")},
        "max_sequence_length": arguments["sequence_length"],
    }


_ATTENTION = "self_attention/attention_output"
_UP, _DOWN = "feedforward_intermediate_dense", "feedforward_output_dense"
_OUTSIDE = {
    "embedding/embeddings": ("transformer.wte.weight", "token_embedding/embeddings"),
    "embedding/reverse_embeddings": ("lm_head.weight", ""),
    "positions/embeddings": ("transformer.wpe.weight", "position_embedding/embeddings"),
    "final_norm/gamma": ("transformer.ln_f.weight", "layer_norm/gamma"),
    "final_norm/beta": ("transformer.ln_f.bias", "layer_norm/beta"),
}
_BLOCK = {
    "attention_norm/gamma": ("ln_1.weight", "self_attention_layer_norm/gamma"),
    "attention_norm/beta": ("ln_1.bias", "self_attention_layer_norm/beta"),
    # transformers also concatenates query, key and value in one tensor.
    "attention/query_key_value/kernel": (
        "attn.c_attn.weight",
        "self_attention/query/kernel self_attention/key/kernel self_attention/value/kernel",
    ),
    "attention/query_key_value/bias": (
        "attn.c_attn.bias",
        "self_attention/query/bias self_attention/key/bias self_attention/value/bias",
    ),
    "attention/output/kernel": ("attn.c_proj.weight", f"{_ATTENTION}/kernel"),
    "attention/output/bias": ("attn.c_proj.bias", f"{_ATTENTION}/bias"),
    "feed_forward_norm/gamma": ("ln_2.weight", "feedforward_layer_norm/gamma"),
    "feed_forward_norm/beta": ("ln_2.bias", "feedforward_layer_norm/beta"),
    "feed_forward/up/kernel": ("mlp.c_fc.weight", f"{_UP}/kernel"),
    "feed_forward/up/bias": ("mlp.c_fc.bias", f"{_UP}/bias"),
    "feed_forward/down/kernel": ("mlp.c_proj.weight", f"{_DOWN}/kernel"),
    "feed_forward/down/bias": ("mlp.c_proj.bias", f"{_DOWN}/bias"),
}

GPT = Family(
    name="GPT-2",
    build=gpt.build,
    has_blocks=lambda settings: settings["norm"] == "layer" and settings["norm_first"],
    arguments=(),
    tensors=tensors("transformer.h.{}.", _OUTSIDE, _BLOCK),
    prefix="transformer.",
    # Other kernels belong to transformers' Conv1D, which stores them as (inputs, outputs).
    linear=lambda path: path == "embedding/reverse_embeddings",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    ignored=(".attn.bias", ".attn.masked_bias"),
    copies={"lm_head.weight": "embedding/embeddings"},
    backbones=("GPT2Backbone",),
    read=_read,
    write=_write,
    read_backbone=_read_backbone,
    write_backbone=_write_backbone,
    read_layers=tied,
)
