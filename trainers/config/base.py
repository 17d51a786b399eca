"""The keys that every recipe has, and what they mean. A recipe starts from `base` and changes them.

`model` and `task` hold the name and every argument of the builder and of the task.
"""

import ml_collections

from trainers.optimization.optimizers import OPTIMIZERS, check_optimizer
from trainers.optimization.schedules import SCHEDULES, check_schedule
from zoo.prep.settings import defaults as prep_defaults


def optimizer(name: str, **arguments) -> ml_collections.ConfigDict:
    """The section of an optimizer: all its arguments, some of them changed."""
    check_optimizer(name)
    return _section(name, OPTIMIZERS[name], arguments)


def schedule(name: str, **arguments) -> ml_collections.ConfigDict:
    """The section of a schedule: all its arguments, some of them changed."""
    check_schedule(name)
    return _section(name, SCHEDULES[name], arguments)


def _section(name: str, defaults: dict, arguments: dict) -> ml_collections.ConfigDict:
    section = ml_collections.ConfigDict({"name": name, **defaults})
    # Type-safe: a whole number given for a float becomes one, and can be overridden as one.
    section.update(arguments)
    return section


# Examples of what the tuples hold that are empty by default.
ELEMENTS = {
    "data.image_size": 224,
    "data.languages": "en",
    "trainer.callbacks": "tensorboard",
    "compress.m_by_n": 2,
    "compress.structured.widths": "PATH=UNITS",
    "compress.low_rank.ranks": "PATH=RANK",
    "prep.clean.mask": "email",
    "prep.language.keep": "en",
}


def base() -> ml_collections.ConfigDict:
    """Returns all keys with the values that most recipes share."""
    return ml_collections.ConfigDict(
        {
            "model": {"name": ""},
            "task": {"name": ""},
            "data": {
                # Name of `zoo fetch`, npz:FILE, folder:FOLDER, prepared:FOLDER, tfds:NAME:VERSION
                "source": "",
                "manual_dir": "",  # folder of the original files; "" looks in ZOO_DATA_DIR
                "validation_size": 0,  # training examples held out, stratified by class
                "image_size": (),  # of folder: and tfds: (height, width), or with channels
                # Of text alone:
                "languages": (),  # ("en", "de"): source and target; () as the source has them
                "tokenizer": "",  # a kind of zoo.data.text.tokenizers, or a work directory that has one
                "vocabulary_size": 0,
                "normalization": "NFC",
                "sequence_length": 0,  # tokens that the model sees at once
                "packing": "stream",  # windows over all text, or "best_fit": documents in rows
            },
            "optimizer": optimizer("adamw"),
            "schedule": schedule("constant"),
            "trainer": {
                "steps": 0,  # updates of the whole run; 0 where epochs is set
                "epochs": 0,
                "global_batch_size": 128,  # examples of one update, over all replicas
                "micro_batch_size": 0,  # what a replica computes at once; 0 for its whole share
                "strategy": "one_device",  # mirrored, multi_worker, tpu, or auto: by what is there
                "replicas": 0,  # of a mirrored strategy; 0 for every device there is
                "precision": "float32",
                "jit_compile": False,  # XLA around forward and backward pass
                "remat": "",  # regular expression of blocks to recompute; "" for none
                # Momentum of the average of the weights; 0 for none. Batch statistics of the
                # average are computed from up to 10,000 training rows at each evaluation.
                "ema": 0.0,
                "seed": 0,
                "deterministic": False,  # bit-identical reruns on a GPU too, slower there
                "steps_per_execution": 1,  # updates between two looks of Python
                "log_every": 100,  # updates
                "evaluate_every": 0,  # updates; 0 for every epoch's end
                "checkpoint_every": 0,  # updates; 0 for every epoch's end
                "keep": 2,  # checkpoints
                "max_rollbacks": 0,  # times to go back to a checkpoint when the loss is NaN
                "callbacks": (),  # names of trainers.train.callbacks
                # Whose notice that it takes the machine away saves and stops the run, as SIGTERM
                # does: gcp, aws or azure; "" for none's
                "preemption_notice": "",
            },
            "compress": {
                "sparsity": 0.0,  # share of each kernel that is 0 in the end; 0 prunes nothing
                "schedule": "polynomial",  # or "constant"
                "initial_sparsity": 0.0,
                "begin": 0.0,  # between these shares of the run masks change …
                "end": 0.7,
                "frequency": 100,  # … every so many updates; a whole period must fit between them
                "pattern": "",  # regular expression of the paths of variables; "" for all kernels
                "m_by_n": (),  # (2, 4): two zeros among four inputs, in place of sparsity
                "block": (1, 1),  # inputs and outputs that are 0 together
                "keep_zeros": False,  # what is 0 at the start stays so, in place of sparsity
                "qat": {
                    "on": False,  # kernels and outputs are rounded to 8 bits in training
                    "decay": 0.99,  # of the average of outputs' ranges
                },
                "cluster": {"number": 0},  # of values that each kernel has; 0 for any
                "distill": {
                    "teacher": "",  # a work directory; "" for none
                    "alpha": 0.5,  # share of the teacher in the loss; the labels have the rest
                    "temperature": 2.0,
                    "hidden": 0.0,  # weight of the difference of hidden states
                    "attention": 0.0,  # weight of the difference of where positions look
                    "cache": False,  # what the teacher says of fixed examples is kept on the disk
                    "sentences": 0,  # beams with which it translates the training split anew
                },
                "structured": {  # whole units are taken out, and the model is built smaller
                    "sparsity": 0.0,  # share of each layer's units that goes; 0 for none
                    "pattern": "",  # regular expression of the paths of layers; "" for all
                    "widths": (),  # PATH=UNITS that stay; filled in when the run begins
                    "keep": False,  # widths are those of init_from
                },
                "low_rank": {  # kernels as products, of ranks by one of these three
                    "energy": 0.0,  # share of each kernel's squared sum that is kept
                    "budget": 0.0,  # share of the model's parameters that is left
                    "sensitivity": 0.0,  # how much the loss may grow by each kernel; 0.01: 1 %
                    "pattern": "",  # regular expression of the paths of layers; "" for all
                    "ranks": (),  # PATH=RANK, PATH=INxOUT; filled in when the run begins
                    "keep": False,  # ranks are those of init_from
                },
                "ptq": {  # of `zoo compress ptq`, which does not train
                    "format": "",  # one of trainers.compress_jobs.methods.FORMATS; "" for none
                    "examples": 200,  # of the training data, by which ranges are chosen
                },
            },
            "prep": prep_defaults(),  # of `zoo prepare`: zoo/prep/settings.py says what they mean
            # A work directory, .keras file, transformers folder or keras_hub:PRESET to start from.
            "init_from": "",
        }
    )
