"""Rules for every task."""

import ast
import inspect
import textwrap

import pytest
import tensorflow as tf

from trainers.compression.distill import Distillation
from zoo import registry
from zoo.tasks.base import Task


def kinds(base=Task):
    """Yields every class of the project's tasks."""
    for kind in base.__subclasses__():
        if kind.__module__.partition(".")[0] in ("zoo", "trainers"):
            yield kind
            yield from kinds(kind)


def setters(kind) -> set[str]:
    """Returns the methods of a class that set attributes of `self`."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    return {
        method.name
        for method in tree.body
        if isinstance(method, ast.FunctionDef)
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }


def test_a_task_is_changed_by_bind_alone():
    """No method depends on an earlier call of another one."""
    every = map(registry.build_task, registry._tasks)
    expected = {type(task) for task in every if type(task).__module__.startswith("zoo.")}
    classes = set(kinds())
    assert expected | {Distillation} <= classes
    for kind in classes:
        assert setters(kind) <= {"__init__", "bind"}, kind


@pytest.mark.parametrize(("name", "model"), [("clm", "gpt_nano"), ("gan", "dcgan_mnist")])
def test_a_task_is_bound_before_it_is_used(name, model):
    task = registry.build_task(name)
    net = registry.build(model, **registry.entry(model).tiny)
    arrays = {key: tf.constant(x) for key, x in task.synthetic(net, 2, 0).items()}
    batch = {**arrays, "weight": tf.ones(2)}

    def prepare():
        return task.prepare(dict(batch), lambda n: tf.fill((2, n), 0.5), True)

    with pytest.raises(AttributeError, match="tokenizer|noise_dim"):
        prepare()
    assert task.bind(net) is task
    assert prepare()
