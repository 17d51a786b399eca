"""The catalog of models, with one row per model. Does not import TensorFlow.

A new model needs a file in zoo/models, a row here and a recipe in configs/.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the catalog.

    Attributes:
      name: name of the model in `zoo.build` and in recipes.
      builder: `"module:function"`, or the function itself; `builder(**arguments) -> keras.Model`.
      task: name of the task that trains the model.
      parameters: number of parameters with the arguments of this row.
      paper: source of the architecture.
      licence: license of the model code in this repository.
      arguments: builder arguments that override the defaults of the builder.
      tiny: builder arguments of a small variant for the contract tests; empty for a row that
        differs from another row of the family only in size.
      task_arguments: arguments of the task for the tiny variant.
    """

    name: str
    builder: str | Callable
    task: str
    parameters: int
    paper: str
    licence: str = "Apache-2.0"
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def family(self) -> str:
        """Name of the builder's module: the models of one file are one family."""
        module = self.builder.partition(":")[0] if isinstance(self.builder, str) else None
        return (module or self.builder.__module__).rpartition(".")[2]


_TINY_TRANSFORMER = {
    "vocabulary_size": 16, "sequence_length": 12, "num_layers": 2, "hidden_dim": 16,
    "num_heads": 4, "dropout": 0.0,
}  # fmt: skip


def _family(module: str, task: str, paper: str, sizes: Mapping, tiny: Mapping, **kwargs):
    """Returns the rows of `sizes`: name -> (parameters, arguments). The first row gets `tiny`."""
    return tuple(
        Entry(
            name, f"zoo.models.{module}:build", task, parameters, paper, arguments=arguments,
            tiny={} if number else tiny, **kwargs,
        )
        for number, (name, (parameters, arguments)) in enumerate(sizes.items())
    )  # fmt: skip


GPT = _family(
    "gpt",
    "clm",
    "Radford et al. 2019, Language models are unsupervised multitask learners",
    {
        "gpt_nano": (858_880, {
            "vocabulary_size": 256, "num_layers": 4, "hidden_dim": 128, "num_heads": 4,
            "sequence_length": 256,
        }),
        "gpt_mini": (13_891_584, {
            "vocabulary_size": 8192, "num_layers": 6, "hidden_dim": 384, "num_heads": 6,
            "sequence_length": 256,
        }),
        "gpt2_base": (124_439_808, {"num_layers": 12, "hidden_dim": 768, "num_heads": 12}),
        "gpt2_medium": (354_823_168, {"num_layers": 24, "hidden_dim": 1024, "num_heads": 16}),
        "gpt2_large": (774_030_080, {"num_layers": 36, "hidden_dim": 1280, "num_heads": 20}),
        "gpt2_xl": (1_557_611_200, {"num_layers": 48, "hidden_dim": 1600, "num_heads": 25}),
    },
    _TINY_TRANSFORMER,
)  # fmt: skip
LLAMA = _family(
    "llama",
    "clm",
    "Touvron et al. 2023, LLaMA, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783",
    {
        "llama_nano": (771_200, {
            "vocabulary_size": 256, "num_layers": 4, "hidden_dim": 128, "num_heads": 4,
            "num_key_value_heads": 2, "sequence_length": 256,
        }),
        "llama_mini": (12_587_904, {
            "vocabulary_size": 8192, "num_layers": 6, "hidden_dim": 384, "num_heads": 6,
            "num_key_value_heads": 2, "sequence_length": 256,
        }),
        "tinyllama_1.1b": (1_100_048_384, {
            "vocabulary_size": 32_000, "num_layers": 22, "hidden_dim": 2048, "num_heads": 32,
            "num_key_value_heads": 4, "intermediate_dim": 5632, "tie_weights": False,
        }),
        "llama2_7b": (6_738_415_616, {
            "vocabulary_size": 32_000, "num_layers": 32, "hidden_dim": 4096, "num_heads": 32,
            "intermediate_dim": 11_008, "sequence_length": 4096, "tie_weights": False,
        }),
        "llama3_8b": (8_030_261_248, {
            "vocabulary_size": 128_256, "num_layers": 32, "hidden_dim": 4096, "num_heads": 32,
            "num_key_value_heads": 8, "intermediate_dim": 14_336, "sequence_length": 8192,
            "rotary_base": 500_000.0, "tie_weights": False,
        }),
    },
    {**_TINY_TRANSFORMER, "num_key_value_heads": 2, "sequence_length": 32},
)  # fmt: skip
MOE = _family(
    "moe",
    "moe",
    "Dai et al. 2024, DeepSeekMoE, arXiv:2401.06066; Fedus et al. 2021, Switch, arXiv:2101.03961",
    {
        "moe_nano": (2_004_128, {
            "vocabulary_size": 256, "num_layers": 4, "hidden_dim": 128, "num_heads": 4,
            "num_key_value_heads": 2, "sequence_length": 256, "expert_dim": 128,
        }),
    },
    {
        **_TINY_TRANSFORMER, "num_key_value_heads": 2, "sequence_length": 32, "num_experts": 4,
        "expert_dim": 8,
    },
    task_arguments={"balance": 0.01, "bias_rate": 0.01},
)  # fmt: skip
LOOPED = _family(
    "looped",
    "clm",
    "Geiping et al. 2025, arXiv:2502.05171; Dehghani et al. 2019, arXiv:1807.03819",
    {
        "looped_nano": (869_760, {
            "vocabulary_size": 256, "num_layers": 2, "hidden_dim": 128, "num_heads": 4,
            "sequence_length": 256,
        }),
    },
    {
        **{k: v for k, v in _TINY_TRANSFORMER.items() if k != "dropout"}, "num_layers": 1,
        "sequence_length": 32, "loops": 3, "loop_range": (1, 4), "backprop_loops": 2,
    },
)  # fmt: skip
REFORMER = _family(
    "reformer",
    "clm",
    "Kitaev et al. 2020, Reformer, arXiv:2001.04451",
    {
        "reformer_nano": (865_536, {"num_layers": 4, "hidden_dim": 128, "num_heads": 4}),
        # The sizes of google/reformer-enwik8, which has 128 to 255 positions in local attention.
        "reformer_enwik8": (149_182_722, {
            "vocabulary_size": 258, "sequence_length": 65_536, "num_layers": 12,
            "hidden_dim": 1024, "num_heads": 8, "dropout": 0.2, "position_shape": (128, 512),
            "attention": "window:256,window:256,lsh:4:256,window:256", "epsilon": 1e-12,
        }),
    },
    {**_TINY_TRANSFORMER, "attention": "window:4,lsh:2"},
)  # fmt: skip
RETRO = _family(
    "retro",
    "retro",
    "Borgeaud et al. 2022, Improving language models by retrieving, arXiv:2112.04426",
    {
        "retro_nano": (1_157_248, {
            "vocabulary_size": 256, "num_layers": 4, "hidden_dim": 128, "num_heads": 4,
            "num_encoder_layers": 1,
        }),
    },
    {
        **_TINY_TRANSFORMER, "neighbors": 2, "chunk_size": 4, "num_encoder_layers": 1,
        "cross_every": 2, "sequence_length": 32,
    },
    task_arguments={"neighbors": 2, "chunk_size": 4},
)  # fmt: skip
AXIAL = _family(
    "axial",
    "clm",
    "Ho et al. 2019, Axial Attention in Multidimensional Transformers, arXiv:1912.12180",
    {
        "axial_image_nano": (1_259_264, {}),
        "axial_text_nano": (1_263_872, {"sequence_length": 4096, "columns": 64}),
    },
    {
        "vocabulary_size": 16, "sequence_length": 12, "columns": 4, "num_outer_layers": 2,
        "num_inner_layers": 1, "hidden_dim": 16, "num_heads": 4,
    },
)  # fmt: skip
# Positions and groups of features by turns.
AXIAL_FEATURES = Entry(
    name="axial_features_nano",
    builder="zoo.models.gpt:build",
    task="clm",
    parameters=858_880,
    paper="Ho et al. 2019, arXiv:1912.12180, for the axes sequence and features",
    arguments={
        "vocabulary_size": 256, "num_layers": 4, "hidden_dim": 128, "num_heads": 4,
        "sequence_length": 256, "attention": "plain,features:8",
    },
    tiny={**_TINY_TRANSFORMER, "attention": "plain,features:2"},
)  # fmt: skip
LSTM = _family(
    "lstm",
    "clm",
    "Hochreiter and Schmidhuber 1997, Long short-term memory",
    {
        "lstm_generator": (582_120, {}),
        "lstm_generator_deep": (4_443_112, {"hidden_dim": 512, "num_layers": 2}),
    },
    {"vocabulary_size": 16, "embedding_dim": 8, "hidden_dim": 8, "num_layers": 2},
)
SEQ2SEQ = _family(
    "seq2seq",
    "seq2seq",
    "Vaswani et al. 2017, Attention is all you need, arXiv:1706.03762",
    {
        "transformer_tiny": (2_093_056, {
            "vocabulary_size": 6000, "num_encoder_layers": 4, "hidden_dim": 128, "num_heads": 4,
            "intermediate_dim": 256,
        }),
        "transformer_small": (5_490_688, {
            "vocabulary_size": 6000, "num_encoder_layers": 3, "hidden_dim": 256, "num_heads": 4,
            "intermediate_dim": 512, "norm_first": True,
        }),
        "transformer_base": (63_082_496, {
            "num_encoder_layers": 6, "hidden_dim": 512, "num_heads": 8, "intermediate_dim": 2048,
        }),
        "transformer_big": (214_245_376, {
            "num_encoder_layers": 6, "hidden_dim": 1024, "num_heads": 16,
            "intermediate_dim": 4096, "dropout": 0.3,
        }),
    },
    {
        "vocabulary_size": 16, "num_encoder_layers": 2, "hidden_dim": 16, "num_heads": 4,
        "intermediate_dim": 32, "dropout": 0.0,
    },
)  # fmt: skip

BERT = _family(
    "bert",
    "nsp",
    "Devlin et al. 2018, BERT, arXiv:1810.04805; sizes of Turc et al. 2019, arXiv:1908.08962",
    {
        "bert_tiny": (4_433_468, {"num_layers": 2, "hidden_dim": 128}),
        "bert_mini": (11_267_900, {"num_layers": 4, "hidden_dim": 256}),
        "bert_small": (29_058_876, {"num_layers": 4, "hidden_dim": 512}),
        "bert_medium": (41_668_412, {"num_layers": 8, "hidden_dim": 512}),
        "bert_base": (110_106_428, {"num_layers": 12, "hidden_dim": 768}),
        "bert_large": (336_226_108, {"num_layers": 24, "hidden_dim": 1024}),
    },
    _TINY_TRANSFORMER,
)  # fmt: skip
# 514 positions as in the authors' code, which does not use the first two.
_ROBERTA = {
    "vocabulary_size": 50_265, "sequence_length": 514, "epsilon": 1e-5, "next_sentence": False,
}  # fmt: skip
ROBERTA = _family(
    "bert",
    "mlm",
    "Liu et al. 2019, RoBERTa, arXiv:1907.11692",
    {
        "roberta_base": (124_696_665, {**_ROBERTA, "num_layers": 12, "hidden_dim": 768}),
        "roberta_large": (355_411_033, {**_ROBERTA, "num_layers": 24, "hidden_dim": 1024}),
    },
    _TINY_TRANSFORMER,
)  # fmt: skip

LONGFORMER = _family(
    "longformer",
    "mlm",
    "Beltagy et al. 2020, Longformer, arXiv:2004.05150",
    {
        "longformer_nano": (1_172_352, {
            "vocabulary_size": 256, "num_layers": 4, "hidden_dim": 128, "num_heads": 4,
            "sequence_length": 1024, "attention": "window:32",
        }),
        "longformer_base": (148_708_953, {"num_layers": 12, "hidden_dim": 768}),
    },
    # Token 6, the first word, replaces <start>, which synthetic rows do not have.
    {
        **_TINY_TRANSFORMER, "attention": "window:2,window:2:2", "max_global": 2,
        "start_token": 6,
    },
)  # fmt: skip

ENCODER = _family(
    "encoder",
    "mlm",
    "Devlin et al. 2018, BERT; with parts of Warner et al. 2024, ModernBERT, arXiv:2412.13663",
    {
        "encoder_nano": (1_138_176, {"num_layers": 3, "hidden_dim": 128, "num_heads": 4}),
        "encoder_mini": (4_272_896, {"num_layers": 4, "hidden_dim": 256, "num_heads": 4}),
    },
    {**_TINY_TRANSFORMER, "sequence_length": 32},
)  # fmt: skip

ELECTRA = _family(
    "electra",
    "electra",
    "Clark et al. 2020, ELECTRA, arXiv:2003.10555",
    {"electra_nano": (1_303_937, {"num_layers": 3, "hidden_dim": 128, "num_heads": 4})},
    {**_TINY_TRANSFORMER, "sequence_length": 32},
)

LINEAR = Entry(
    name="linear_text",
    builder="zoo.models.linear:build",
    task="text_classification",
    parameters=524_294,
    paper="Weinberger et al. 2009, arXiv:0902.2206; Joulin et al. 2016, arXiv:1607.01759",
    tiny={"num_classes": 3, "buckets": 8},
    task_arguments={"num_classes": 3},
)
_GAN_PAPER = "Goodfellow et al. 2014, Generative adversarial nets, arXiv:1406.2661"
GAN = (
    Entry(
        name="gan_mnist",
        builder="zoo.models.gan:build",
        task="gan",
        parameters=326_929,
        paper=_GAN_PAPER,
        tiny={"noise_dim": 8, "hidden_dim": 16, "filters": 4},
    ),
    Entry(
        name="dcgan_mnist",
        builder="zoo.models.gan:build_dcgan",
        task="gan",
        parameters=1_549_698,
        paper="Radford et al. 2016, DCGAN, arXiv:1511.06434",
        tiny={"noise_dim": 8, "filters": 6},
        task_arguments={"r1": 1.0},
    ),
)

TRANSFER = (
    Entry(
        name="vgg16_transfer",
        builder="zoo.models.transfer:build",
        task="image_classification",
        parameters=21_140_042,
        paper="Simonyan and Zisserman 2015, Very deep convolutional networks, arXiv:1409.1556",
        tiny={"input_shape": (32, 32, 3), "hidden_dim": 8, "num_classes": 3},
    ),
    *(
        Entry(
            name=name,
            builder="zoo.models.transfer:build",
            task="image_classification",
            parameters=parameters,
            paper=paper,
            arguments={"backbone": backbone, "pooling": "average", "name": name},
        )
        for name, backbone, parameters, paper in (
            ("resnet50_transfer", "resnet50", 24_114_826, "He et al. 2016, arXiv:1512.03385"),
            (
                "mobilenet_v3_transfer", "mobilenetv3small", 1_089_402,
                "Howard et al. 2019, arXiv:1905.02244",
            ),
            (
                "efficientnet_v2_transfer", "efficientnetv2b0", 6_249_818,
                "Tan and Le 2021, arXiv:2104.00298",
            ),
        )
    ),
)  # fmt: skip

CATALOG = (
    Entry(
        name="cnn_classifier",
        builder="zoo.models.cnn:build",
        task="image_classification",
        parameters=93_322,
        paper="LeCun et al. 1998, Gradient-based learning applied to document recognition",
        tiny={"filters": (4, 8, 8), "hidden_dim": 8, "num_classes": 3},
    ),
    *GPT,
    *LLAMA,
    *MOE,
    *LOOPED,
    *REFORMER,
    *RETRO,
    *AXIAL,
    AXIAL_FEATURES,
    *LSTM,
    *SEQ2SEQ,
    *BERT,
    *ROBERTA,
    *LONGFORMER,
    *ENCODER,
    *ELECTRA,
    LINEAR,
    *GAN,
    *TRANSFER,
)
