"""Distillation: losses computed by hand, equal updates for any split, refused teachers."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from tests import toys
from tests.trainers.train.test_resume import assert_same_end, cut_at
from tests.zoo.tasks.test_seq2seq import numbers  # noqa: F401 (a fixture)
from tests.zoo.tasks.test_seq2seq import sentences as texts
from trainers.compression.distill import Distillation, divergence
from trainers.config.base import optimizer
from trainers.config.recipe import as_dict
from trainers.run.workdir import WorkDirectory, read_metrics, save_model
from zoo import registry
from zoo.data import Dataset
from zoo.errors import UsageError
from zoo.generation.translate import Translator
from zoo.saved.workdir import FORMAT_VERSION
from zoo.tasks.base import Task

# Per kind: the model, the task, and the arguments of the larger teacher.
KINDS = {
    "clm": ("gpt_nano", {"hidden_dim": 24, "num_heads": 3}),
    "nsp": ("bert_tiny", {"num_layers": 3}),
    "seq2seq": ("transformer_tiny", {"hidden_dim": 24, "num_heads": 2}),
    "image_classification": ("cnn_classifier", {"hidden_dim": 16}),
    "lstm": ("lstm_generator", {"hidden_dim": 12}),
}


def data_of(kind, examples=40):
    row = registry.entry(KINDS[kind][0])
    model = registry.build(row.name, **row.tiny)
    task = registry.build_task(row.task, **row.task_arguments)
    return Dataset(kind, {"train": task.synthetic(model, examples, 0)}, (), kind)


def recipe(kind, teacher="", model_arguments=None, **trainer):
    row = registry.entry(KINDS[kind][0])
    config = toys.recipe(
        row.name, row.task, model_arguments={**row.tiny, **(model_arguments or {})},
        task_arguments=dict(row.task_arguments),
        **{"steps": 6, "log_every": 3, "checkpoint_every": 3, **trainer},
    )  # fmt: skip
    config.compress.distill.teacher = str(teacher)
    return config


@pytest.fixture(scope="module")
def teachers(devices, tmp_path_factory):
    """Returns `get(kind) -> work directory` of an untrained teacher."""
    workdirs = {}

    def get(kind):
        if kind not in workdirs:
            workdirs[kind] = tmp_path_factory.mktemp("teacher") / kind
            config = recipe(kind, model_arguments=KINDS[kind][1])
            workdir = WorkDirectory(workdirs[kind]).open()
            workdir.write_config(as_dict(config), "toys", data_of(kind))
            arguments = config.model.to_dict()
            keras.utils.set_random_seed(5)
            save_model(registry.build(arguments.pop("name"), **arguments), workdir / "model.keras")
            workdir.close()
        return workdirs[kind]

    return get


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def kl(teacher, student):
    return (teacher * (np.log(teacher) - np.log(student))).sum(-1)


def test_divergence_is_that_of_softened_distributions():
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, 3, 4, 7)).astype("float32") * 3
    expected = kl(softmax(teacher / 2.5), softmax(student / 2.5))
    np.testing.assert_allclose(divergence(teacher, student, 2.5), expected, rtol=1e-4)
    np.testing.assert_allclose(divergence(teacher, teacher + 5.0, 2.5), 0, atol=1e-6)


def prepared(task, kind, rows=6, pad=2):
    """Returns a batch whose last rows are padding."""
    arrays = data_of(kind).splits["train"]
    batch = {key: tf.constant(value[:rows]) for key, value in arrays.items()}
    batch["weight"] = tf.constant([1.0] * (rows - pad) + [0.0] * pad)
    return task.prepare(batch, lambda n: tf.random.stateless_uniform((rows, n), (0, 0)), True)


def built(kind, settings, model_arguments=None):
    """Returns student, teacher and the distillation task."""
    row = registry.entry(KINDS[kind][0])
    keras.utils.set_random_seed(1)
    student = registry.build(row.name, **{**row.tiny, **(model_arguments or {})})
    teacher = registry.build(row.name, **{**row.tiny, **KINDS[kind][1]})
    for weight in (*student.weights, *teacher.weights):
        if "query_key_value" in weight.path:  # attention heads with different patterns
            weight.assign(12 * weight)
    task = registry.build_task(row.task, **row.task_arguments)
    task.bind(student, arguments=row.tiny)
    base = {"alpha": 0.0, "temperature": 2.0, "hidden": 0.0, "attention": 0.0, "cache": False}
    return student, teacher, Distillation(task, student, teacher, {**base, **settings})


def test_nothing_of_a_task_is_inherited():
    """An inherited method would use the default of `Task` instead of the student's task."""
    contract = {name for name in vars(Task) if not name.startswith("_")}
    _, _, task = built("clm", {"alpha": 0.5})
    own = {name for name in vars(Distillation) if not name.startswith("_")}
    assert contract - own - vars(task).keys() == set()
    assert (task.unit, task.sample_kind) == ("tokens", "text")
    assert task.evaluate_split.__self__ is task.task


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=5e-4)


def test_terms_of_a_language_model_by_hand():
    """Widths and numbers of heads differ, so a projection and means over heads are used."""
    settings = {"alpha": 0.7, "hidden": 2.0, "attention": 3.0}
    student, teacher, task = built("clm", settings)
    assert task.terms == pytest.approx(
        {"labels": 0.3, "soft": 0.7 * 4, "hidden": 2.0, "attention": 3.0}
    )
    batch = prepared(task, "clm")
    output, weights = task.forward(student, batch, training=False), task.term_counts(batch)
    inputs = {key: batch[key] for key in ("tokens", "segments")}
    logits, teacher_logits = (np.asarray(model(inputs)) for model in (student, teacher))
    counts = np.asarray(batch["counts"])
    close(
        output.sums["soft"], (kl(softmax(teacher_logits / 2), softmax(logits / 2)) * counts).sum()
    )
    close(weights["soft"], counts.sum())
    own = np.log(softmax(logits))
    own = -np.take_along_axis(own, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    close(output.sums["labels"], (own * counts).sum())
    close(output.outputs, logits)

    real = (np.asarray(batch["segments"]) > 0) * np.asarray(batch["weight"])[:, None]
    assert real.sum() < counts.size  # some positions are padding
    blocks = ("block_0", "block_1")
    close(weights["hidden"], 2 * real.sum())
    hidden = attention = 0
    for name in blocks:
        states, looks = [], []
        for model in (student, teacher):
            layer = model.get_layer(name)
            x, bias = layer.input[:2]
            x, bias, out = keras.Model(model.input, [x, bias, layer.output])(inputs)
            states.append(np.asarray(out))
            h = layer.attention_norm(x)
            query, key, _ = layer.attention.project(h, 0)
            scores = np.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
            looks.append(softmax(scores + np.asarray(bias)).mean(1))
        projection = np.asarray(task.projections[name].kernel)
        hidden += (((states[0] @ projection - states[1]) ** 2).mean(-1) * real).sum()
        looks = [np.maximum(x, 1e-37) for x in looks]
        attention += (kl(looks[1], looks[0]) * real).sum()
    close(output.sums["hidden"], hidden)
    close(output.sums["attention"], attention)


def test_attention_is_compared_head_by_head():
    """With equal numbers of heads, attention is compared per head, not as a mean."""
    arguments = {"hidden_dim": 24, "num_heads": 3}
    student, teacher, task = built("clm", {"attention": 1.0}, arguments)
    batch = prepared(task, "clm")
    actual = float(task.forward(student, batch, training=False).sums["attention"])
    total = 0.0
    real = np.asarray(tf.cast(batch["segments"] > 0, tf.float32) * batch["weight"][:, None])
    for name in ("block_0", "block_1"):
        probabilities = []
        for model in (student, teacher):
            layer, collected = model.get_layer(name), []
            x, bias = layer.input[:2]
            x, bias = keras.Model(model.input, [x, bias])(
                {k: batch[k] for k in ("tokens", "segments")}
            )
            query, key, value = layer.attention.project(layer.attention_norm(x), 0)
            from zoo.layers.attention_forms.plain import attend

            attend(query, key, value, bias, lambda p, collected=collected: collected.append(p) or p)
            probabilities.append(np.maximum(np.asarray(collected[0]), 1e-37))
        total += (kl(probabilities[1], probabilities[0]).mean(1) * real).sum()
    close(actual, total)


def test_terms_of_probabilities_by_hand():
    """The softened probabilities of a classifier equal those of its logits."""
    student, teacher, task = built("image_classification", {"alpha": 1.0, "temperature": 3.0})
    batch = prepared(task, "image_classification")
    output = task.forward(student, batch, training=False)
    ours, theirs = (np.asarray(model(batch["image"])) for model in (student, teacher))
    softened = [p ** (1 / 3) / (p ** (1 / 3)).sum(-1, keepdims=True) for p in (theirs, ours)]
    close(output.sums["soft"], (kl(*softened) * np.asarray(batch["weight"])).sum())
    assert task.terms == {"labels": 0.0, "soft": 9.0}


def test_both_heads_of_a_bert_are_taught():
    student, teacher, task = built("nsp", {"alpha": 0.5, "temperature": 1.0, "hidden": 1.0})
    batch = prepared(task, "nsp")
    output, weights = task.forward(student, batch, training=False), task.term_counts(batch)
    inputs = {key: batch[key] for key in ("tokens", "segments", "types", "masked")}
    ours, theirs = student(inputs), teacher(inputs)
    for term, head, counts in (("soft", "mlm", "counts"), ("soft_nsp", "nsp", "weight")):
        lost = kl(*(softmax(np.asarray(x[head])) for x in (theirs, ours)))
        close(output.sums[term], (lost * np.asarray(batch[counts])).sum())
        close(weights[term], np.asarray(batch[counts]).sum())
    # Two blocks with three: the second is paired with the third, as in the paper.
    assert [(a.name, b.name, side) for a, b, side in task.pairs] == [
        ("block_0", "block_1", "tokens"), ("block_1", "block_2", "tokens")
    ]  # fmt: skip


ALL = {"alpha": 0.6, "hidden": 0.5, "attention": 0.5}


def distilled(kind, teacher, **trainer):
    config = recipe(kind, teacher, **trainer)
    config.compress.distill.update(ALL)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nsp", "seq2seq"])  # two output heads; projections
def test_splitting_a_batch_changes_nothing(kind, teachers, run):
    """The fifth batch is short and rows have unequal token counts: padding has weight 0."""
    data = data_of(kind)
    whole = run(distilled(kind, teachers(kind)), data)
    parts = run(
        distilled(kind, teachers(kind), strategy="mirrored", replicas=2, micro_batch_size=4), data
    )
    assert toys.difference(whole.step.net, parts.step.net) <= 2e-6
    for one, other in zip(whole.step.task.variables, parts.step.task.variables, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert bool(whole.step.task.variables) == (kind != "nsp")


@pytest.mark.slow
def test_the_projection_learns_and_stays_out_of_the_model(teachers, run, tmp_path):
    data, teacher = data_of("clm"), teachers("clm")
    before = zoo.load(teacher).get_weights()
    config = distilled("clm", teacher, steps=4, checkpoint_every=2)
    config.optimizer = optimizer("adamw", learning_rate=0.01)
    whole = run(config, data, tmp_path / "whole")
    cut_at(tmp_path / "whole", tmp_path / "parts", 2)
    parts = run(config, data, tmp_path / "parts")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert len(parts.step.task.variables) == 2
    for one, other in zip(whole.step.task.variables, parts.step.task.variables, strict=True):
        np.testing.assert_array_equal(one, other)
        assert float(np.abs(np.asarray(one)).max()) > 0
    row = registry.entry("gpt_nano")
    bare = registry.build(row.name, **row.tiny)
    saved = zoo.load(tmp_path / "whole")
    assert [v.path for v in saved.weights] == [v.path for v in bare.weights]
    assert toys.difference(saved, whole.step.net) == 0
    for one, other in zip(before, zoo.load(teacher).get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    fresh = built("clm", ALL)[2].variables
    for one, other in zip(whole.step.task.variables, fresh, strict=True):
        assert one.shape == other.shape
    from trainers.run.checkpoint import list_checkpoints, read

    header, _ = read(list_checkpoints(tmp_path / "whole" / "checkpoints")[-1][1])
    size = len(bare.weights) + 2
    assert sum("projection" in path for path in header["paths"][-2:]) == 2
    assert len(header["paths"]) < 5 * size  # no variable of the teacher


@pytest.mark.slow
def test_the_teacher_alone_teaches(run, tmp_path):
    """Without labels, a student of the teacher's shape approaches the teacher's outputs."""
    teacher = tmp_path / "teacher"
    config = recipe("lstm", model_arguments=KINDS["lstm"][1])
    config.optimizer = optimizer("adam", learning_rate=0.01)
    run(config, data_of("lstm"), teacher)
    config = recipe("lstm", teacher, model_arguments=KINDS["lstm"][1])
    config.compress.distill.update({"alpha": 1.0, "temperature": 1.0})
    config.optimizer = optimizer("adam", learning_rate=0.02)
    config.trainer.steps = 60
    done = run(config, data_of("lstm"))
    lines = [line["soft"] for line in read_metrics(done.workdir.path) if "soft" in line]
    assert lines[-1] < 0.1 * lines[0], lines
    tokens = data_of("lstm").splits["train"]["tokens"]
    expected, got = (
        np.asarray(model({"tokens": tokens}))
        for model in (zoo.load(teacher), zoo.load(done.workdir.path))
    )
    assert kl(expected, got).mean() < 0.1 * lines[0]  # from the files


@pytest.mark.slow
def test_cached_outputs_teach_the_same(teachers, run, cache, capsys):
    data, teacher = data_of("clm"), teachers("clm")

    def train(**settings):
        config = recipe("clm", teacher)
        config.compress.distill.update(settings)
        return run(config, data)

    live, first, again = train(), train(cache=True), train(cache=True)
    assert "computing the outputs of the teacher for 40 examples" in capsys.readouterr().err
    assert len([p for p in (cache / "teachers").iterdir() if p.is_dir()]) == 1
    assert toys.difference(first.step.net, again.step.net) == 0
    assert toys.difference(live.step.net, first.step.net) < 1e-4  # logits in float16
    assert first.arrays["teacher"].dtype == np.float16
    alone = run(recipe("clm"), data)  # the teacher had an effect
    assert toys.difference(alone.step.net, first.step.net) > 1e-3


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("clm", {"alpha": 1.5}, r"compress.distill.alpha must be in \[0, 1\]"),
        ("clm", {"temperature": 0.0}, "compress.distill.temperature must be positive"),
        ("clm", {"alpha": 0.0}, "must be positive. Received: 0 for all"),
        ("clm", {"hidden": -1.0}, "compress.distill.hidden must be at least 0"),
        ("clm", {"cache": True, "hidden": 1.0}, "cache does not support compress.distill.hidden"),
        ("clm", {"sentences": 4}, "requires sentence pairs and the task seq2seq"),
        ("nsp", {"cache": True}, "the task changes them at random in each epoch"),
        ("image_classification", {"hidden": 1.0}, "requires transformer blocks or LSTMs"),
        ("lstm", {"attention": 1.0}, "requires transformer blocks of the same kind"),
        ("clm", {"teacher": "lstm"}, None),
        ("clm", {"teacher": "nsp"}, "Teacher and student must have the same task. Received: task"),
    ],
)
def test_what_does_not_belong_together(kind, change, message, teachers, run, tmp_path):
    config = recipe(kind, teachers(kind))
    if change.get("teacher"):
        change = {"teacher": str(teachers(change["teacher"]))}
    config.compress.distill.update(change)
    if message is None:  # a teacher of another family is allowed
        run(config, data_of(kind), tmp_path / "run")
        return
    with pytest.raises(UsageError, match=message):
        run(config, data_of(kind), tmp_path / "run")


def test_other_vocabularies_and_classes_are_refused(teachers, run, tmp_path):
    config = recipe("clm", teachers("clm"), model_arguments={"vocabulary_size": 20})
    with pytest.raises(UsageError, match="sizes .* of the teacher"):
        run(config, data_of("clm"), tmp_path / "run")
    config = recipe("clm", teachers("clm"))
    config.task.chunk = 8
    with pytest.raises(UsageError, match="set task.chunk=0"):
        run(config, data_of("clm"), tmp_path / "run")
    data = data_of("image_classification")
    other = Dataset(data.name, data.splits, ("a", "b", "c"), data.fingerprint)
    with pytest.raises(UsageError, match="must have the same classes"):
        run(
            recipe("image_classification", teachers("image_classification")),
            other,
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


STUDENT = ("--config.model.hidden_dim=8", "--config.trainer.steps=25")


@pytest.mark.usefixtures("children_here")
@pytest.mark.slow
def test_the_command(trained, tmp_path, zoo_command):
    out = tmp_path / "student"
    words = ("compress", "distill", trained[0], f"--out={out}", *STUDENT)
    answer = zoo_command(*words, "--config.compress.distill.temperature=4")
    assert answer.status == 0, answer.err
    saved = json.loads((out / "config.json").read_text())["config"]
    assert saved["init_from"] == ""
    assert saved["compress"]["distill"]["teacher"] == str(trained[0])
    assert saved["compress"]["distill"]["temperature"] == 4
    assert saved["model"]["hidden_dim"] == 8
    summary = json.loads((out / "compression.json").read_text())
    assert summary["before"]["parameters"] == 93_322
    assert summary["after"]["parameters"] == zoo.load(out).count_params() < 93_322 / 1.5
    assert zoo_command(*words, "--config.compress.distill.temperature=4").status == 0


@pytest.mark.usefixtures("children_here")
@pytest.mark.slow
def test_a_pruned_teacher(trained, tmp_path, zoo_command):
    words = ("compress", "prune+distill", trained[0], f"--out={tmp_path / 'two'}", *STUDENT)
    answer = zoo_command(*words, "--config.compress.prune.frequency=2")
    assert answer.status == 0, answer.err
    teacher = zoo.load(tmp_path / "two" / "stages" / "1-prune")
    assert teacher.count_params() == 93_322  # the student's width is the student's
    saved = json.loads((tmp_path / "two" / "config.json").read_text())["config"]["compress"]
    assert list(saved) == ["distill"]


def test_what_the_command_refuses(trained, tmp_path, zoo_command):
    run, out = trained[0], f"--out={tmp_path / 'out'}"
    cases = [
        (("--config.compress.distill.alpha=2",), "compress.distill.alpha must be in"),
        (("--config.compress.distill.alhpa=0.2",), "'compress.distill.alhpa'"),
        (("--config.model.name=cnn_clasifier",), "Did you mean 'cnn_classifier'?"),
        (("--config.compress.distill.teacher=",), "distill has no effect"),
        (("--config.model.name=vgg16_transfer", "--config.model.filters=3"), "'model.filters'"),
        (("--config.model.num_classes=11",), "the same classes"),
    ]
    for words, message in cases:
        answer = zoo_command("compress", "distill", run, out, *words)
        assert answer.status == 2, answer.err
        assert message in answer.one_line(), answer.err
    assert not (tmp_path / "out").exists()


def test_a_student_of_another_family(tmp_path):
    from trainers.compress_jobs.chain import parse_chain, plan
    from trainers.config.recipe import resolve

    config = {**as_dict(resolve("gpt_pydoc"))}
    content = {
        "format_version": FORMAT_VERSION, "source": "gpt_pydoc", "config": config,
        "class_names": [], "data_fingerprint": "", "tokenizer": "abc",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(content))
    overrides = [("model.name", "lstm_generator_deep"), ("model.embedding_dim", "32")]
    (stage,) = plan(parse_chain("distill"), tmp_path, tmp_path / "out", overrides)
    student_config = stage.config
    assert student_config.model.to_dict() == {
        "name": "lstm_generator_deep", "vocabulary_size": 0, "embedding_dim": 32,
        "hidden_dim": 512, "num_layers": 2, "dropout": 0.0,
    }  # fmt: skip
    assert student_config.data.tokenizer == str(tmp_path)


@pytest.mark.slow
def test_the_teachers_sentences_stand_in(numbers, run, tmp_path, capsys):  # noqa: F811
    dataset = numbers()

    def sentences(**trainer):
        config = recipe("seq2seq", model_arguments={"vocabulary_size": 0}, **trainer)
        config.data.update({"sequence_length": 12, "packing": "best_fit"})
        config.task.beams = 0
        return config

    config = sentences(steps=40)
    config.optimizer = optimizer("adam", learning_rate=0.01)
    teacher = run(config, dataset, tmp_path / "teacher")
    for _ in range(2):
        config = sentences(steps=2, global_batch_size=4)
        config.compress.distill.update({"teacher": str(tmp_path / "teacher"), "alpha": 0.0})
        config.compress.distill.sentences = 2
        done = run(config, dataset)
    assert capsys.readouterr().err.count("sentences with the teacher") == 1  # kept
    sources = [source for source, _ in dataset.pairs["train"]()]
    translations = Translator(teacher.step.net, dataset.tokenizer)(
        sources, beams=2, length_penalty=done.step.task.task.length_penalty
    )
    assert translations != [target for _, target in dataset.pairs["train"]()]
    rows = done.dataset.splits["train"]
    stored_pairs = zip(
        *(texts(dataset.tokenizer, rows[k]) for k in ("source", "target")), strict=True
    )
    fit = [
        pair
        for pair in zip(sources, translations, strict=True)
        if pair[1] and max(len(dataset.tokenizer.encode(x)) for x in pair) < 12
    ]
    assert len(fit) > 50
    assert sorted(stored_pairs) == sorted(fit)
    for key, array in dataset.splits["test"].items():
        np.testing.assert_array_equal(array, done.dataset.splits["test"][key])
    assert done.dataset.fingerprint != dataset.fingerprint
    assert "soft" not in done.step.task.terms
    for changes in ({"sentences": 2}, {"sentences": 0, "alpha": 0.5}):
        config.compress.distill.update(changes)
        with pytest.raises(UsageError, match="must use the same tokenizer. Received: "):
            run(config, numbers(vocabulary_size=12))


def test_attention_of_global_tokens_is_compared():
    """A student of its teacher's weights has no distance; other global projections have one."""
    row = registry.entry("longformer_nano")
    models = [registry.build(row.name, **row.tiny) for _ in range(2)]
    models[0].set_weights(models[1].get_weights())
    task = registry.build_task(row.task, **row.task_arguments)
    task.bind(models[0], arguments=row.tiny)
    settings = {"alpha": 0.0, "temperature": 1.0, "hidden": 0.0, "attention": 1.0, "cache": False}
    distillation = Distillation(task, *models, settings)
    batch = {key: tf.constant(x) for key, x in task.synthetic(models[0], 4, 0).items()}
    batch["weight"] = tf.ones(4)
    batch = distillation.prepare(
        batch, lambda n: tf.random.stateless_uniform((4, n), (0, 0)), False
    )
    distances = []
    for _ in range(2):
        sums = distillation.forward(models[0], batch, training=False).sums
        distances.append(float(sums["attention"]))
        kernel = models[0].get_layer("block_0").attention.global_query_key_value.kernel
        kernel.assign(20 * kernel)
    assert abs(distances[0]) < 1e-4 < distances[1]


def test_scores_of_lsh_attention_are_refused():
    row = registry.entry("gpt_nano")
    student, teacher = (
        registry.build(row.name, **row.tiny, attention=form) for form in ("plain", "lsh:2")
    )
    task = registry.build_task(row.task, **row.task_arguments)
    settings = {"alpha": 0.0, "temperature": 1.0, "hidden": 0.0, "attention": 1.0, "cache": False}
    with pytest.raises(UsageError, match="forms lsh and features do not compute"):
        Distillation(task, student, teacher, settings)


def test_a_student_with_experts_learns_from_outputs_alone():
    row = registry.entry("moe_nano")
    student, teacher = (registry.build(row.name, **row.tiny) for _ in range(2))
    task = registry.build_task("moe").bind(student, arguments=row.tiny)
    settings = {"alpha": 0.5, "temperature": 2.0, "hidden": 0.0, "attention": 0.0, "cache": False}
    distilled = Distillation(task, student, teacher, settings)
    batch = {key: tf.constant(value) for key, value in task.synthetic(student, 4, 0).items()}
    batch = distilled.prepare({**batch, "weight": tf.ones(4)}, None, True)
    result = distilled.forward(student, batch, training=False)
    assert set(result.sums) == set(distilled.terms) == {"cross_entropy", "balance", "soft"}
    assert result.totals["load"].shape == (2, 4)  # for the balance of the experts
    for term in ("hidden", "attention"):
        with pytest.raises(UsageError, match="do not support blocks of experts"):
            Distillation(task, student, teacher, {**settings, term: 1.0})
