"""`synthetic:chase`: pointer chasing on balanced trees. Which root does a node lead to?

A row lists the edges of `TREES` trees in random order as "; parent child", and then asks for nodes
as "; node". The answer is the root of the node's tree, and the depth is the number of edges up to
it. The trees are balanced: each has `depth` levels below its root with one node each, so all nodes
of a depth are equally likely to belong to each root. Names of nodes are random in each row. The
written-out steps of a question are the nodes on the path, and last the root.
"""

from zoo.data.text.synthetic.question import Question

TREES = 4
BREAK = 255  # begins an edge and a question


def chase(generator, depth: int, largest: int, steps: bool):
    """Returns the row of one forest.

    Args:
      generator: NumPy random generator.
      depth: number of levels below the roots.
      largest: largest depth of any split, which determines the number of names.
      steps: whether to write out the steps. The row then has a single question, because the steps
        of one question would answer others.

    Returns:
      `(prompt, questions, key)`: a list of bytes; the questions; bytes that are the same for equal
      forests, whatever the order of their edges and questions.
    """
    names = generator.permutation(num_names(largest))[: TREES * (depth + 1)]
    levels = names.reshape(depth + 1, TREES)  # a column is a tree
    edges = [(BREAK, *pair) for pair in zip(levels[:-1].ravel(), levels[1:].ravel(), strict=True)]
    prompt = [x for i in generator.permutation(len(edges)) for x in edges[i]]
    places = [(i, j) for i in range(1, depth + 1) for j in range(TREES)]
    order = generator.permutation(len(places))[: 1 if steps else None]
    questions = []
    for i, j in (places[k] for k in order):
        path = levels[:i, j][::-1] if steps else levels[:1, j]
        questions.append(Question([BREAK, levels[i, j]], path.tolist(), i))
    return prompt, questions, b"".join(sorted(bytes(tree.tolist()) for tree in levels.T))


def num_names(largest: int) -> int:
    """Returns the number of names, which rows of the largest depth use up."""
    return TREES * (largest + 1)


def chase_length(depth: int, steps: bool) -> int:
    """Returns the length of a row of a depth."""
    edges = 3 * TREES * depth
    return edges + (1 + depth if steps else 2 * TREES * depth)


def chase_guess(depth: int) -> float:
    """Returns the accuracy of the best guess that does not chase.

    A root is a parent that is never a child, so roots can be recognized, and all of them are
    equally likely.
    """
    return 1 / TREES
