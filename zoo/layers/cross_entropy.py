"""Cross-entropy of a projection onto a vocabulary, a chunk of positions at a time.

The logits of all positions are by far the largest tensor of a language model. Here a chunk's
logits live only while its loss and its part of the gradient are computed, both in the forward
pass: the loss is a weighted sum, so its gradient is known there but for one factor (the idea of
Wijmans et al. 2024, Cut Your Losses, arXiv:2411.09009, and of Liger Kernel, arXiv:2410.10989).
Axes: N positions, C hidden_dim, V vocabulary, M positions of a chunk.
"""

from zoo.layers.gather import pick
from zoo.lazy import keras, ops


def linear_cross_entropy(hidden, kernel, bias, targets, weights, chunk, gradients=True):
    """Returns the weighted sum of cross-entropies of `hidden @ kernel^T + bias`.

    Args:
      hidden: (N, C); the products are computed in its type.
      kernel: (V, C).
      bias: (V,) or None.
      targets: (N,) int32.
      weights: (N,) float32; 0 for positions that do not count.
      chunk: M; 0 for all positions at once.
      gradients: whether the gradient will be asked for.

    Returns:
      `(loss, losses, right)`: the sum, a float32 scalar; cross-entropies (N,) and whether the
      target was the most probable token (N,) float32, both without gradients. Of equally probable
      tokens, which low precision makes, the first counts; in training each does.
    """
    positions = hidden.shape[0]
    chunk = min(chunk or positions, positions)
    padding = -positions % chunk
    if padding:  # rows of weight 0
        hidden = ops.pad(hidden, ((0, padding), (0, 0)))
        targets, weights = ops.pad(targets, (0, padding)), ops.pad(weights, (0, padding))
    chunks = (positions + padding) // chunk
    targets = ops.reshape(targets, (chunks, chunk))
    weights = ops.reshape(weights, (chunks, chunk))
    bias_given = bias is not None

    def one(rows, targets_M, weights_M, kernel, bias, with_gradients):
        logits = ops.cast(ops.matmul(rows, ops.transpose(kernel)), "float32")
        if bias_given:
            logits = logits + ops.cast(bias, "float32")
        largest = ops.max(logits, -1, keepdims=True)
        exponentials = ops.exp(logits - largest)
        total = ops.sum(exponentials, -1, keepdims=True)
        at_target = pick(logits, targets_M)[:, None]
        losses = (ops.log(total) + largest - at_target)[:, 0]
        if not with_gradients:
            right = ops.equal(ops.cast(ops.argmax(logits, -1), targets_M.dtype), targets_M)
            return losses, ops.cast(right, "float32"), None
        # argmax takes three times as long as max: some 3 % of a small model's whole update.
        right = ops.cast(at_target >= largest, "float32")[:, 0]
        # The slope of the logits is (softmax - target) * weight. The division by the total and
        # the weight are left to the narrow sides of the products, and the target is put in at
        # its place: each would be one more pass over (M, V).
        scale = weights_M[:, None] / total
        places = ops.stack([ops.arange(chunk, dtype="int32"), targets_M], -1)
        at_places = ops.exp(at_target - largest) - total
        slope = ops.scatter_update(exponentials, places, at_places[:, 0])
        if keras.backend.standardize_dtype(rows.dtype) == "float16":
            slope, scale = slope / total, weights_M[:, None]  # the total may be beyond its range
        narrow = ops.cast(slope, rows.dtype)
        scaled_rows = ops.cast(rows * ops.cast(scale, rows.dtype), rows.dtype)
        return (
            losses,
            right,
            (
                ops.matmul(narrow, kernel) * ops.cast(scale, rows.dtype),
                ops.cast(ops.matmul(ops.transpose(narrow), scaled_rows), "float32"),
                ops.matmul(ops.transpose(scale), slope)[0] if bias_given else None,
            ),
        )

    def run(hidden, kernel, bias, with_gradients):
        rows = ops.reshape(hidden, (chunks, chunk, hidden.shape[-1]))
        losses, right, row_slopes = [], [], []
        kernel_slope = bias_slope = 0.0
        for i in range(chunks):
            # Each chunk waits for the one before, or all logits would exist together after all.
            turn = 0.0 if i == 0 else ops.stop_gradient(0.0 * losses[-1][0])
            found = one(
                rows[i] + ops.cast(turn, rows.dtype),
                *(targets[i], weights[i], kernel, bias, with_gradients),
            )
            losses.append(found[0])
            right.append(found[1])
            if with_gradients:
                row_slopes.append(found[2][0])
                kernel_slope = kernel_slope + found[2][1]
                bias_slope = bias_slope + found[2][2] if bias_given else None
        losses, right = ops.concatenate(losses), ops.concatenate(right)
        if not with_gradients:
            return losses, right, None
        return losses, right, (ops.concatenate(row_slopes), kernel_slope, bias_slope)

    if not gradients:
        losses, right, _ = run(hidden, ops.cast(kernel, hidden.dtype), bias, False)
        loss = ops.sum(losses * ops.reshape(weights, (-1,)))
        return loss, losses[:positions], right[:positions]

    flat_weights = ops.reshape(weights, (-1,))

    @ops.custom_gradient
    def differentiable(hidden, kernel, *bias):
        losses, right, slopes = run(
            hidden, ops.cast(kernel, hidden.dtype), bias[0] if bias else None, True
        )

        def gradient(*args, upstream=None):
            factor = upstream[0] if upstream is not None else args[0]
            found = [slopes[0] * ops.cast(factor, slopes[0].dtype)]
            found.append(ops.cast(slopes[1] * factor, kernel.dtype))
            if bias_given:
                found.append(ops.cast(slopes[2] * factor, bias[0].dtype))
            return found

        return (ops.sum(losses * flat_weights), losses, right), gradient

    loss, losses, right = differentiable(hidden, kernel, *([bias] if bias_given else []))
    return loss, ops.stop_gradient(losses)[:positions], ops.stop_gradient(right)[:positions]
