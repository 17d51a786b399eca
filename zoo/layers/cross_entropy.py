"""Cross-entropy of a projection onto a vocabulary, computed in chunks of positions.

The logits of all positions are by far the largest tensor of a language model. Here the logits of a
chunk exist only while its loss and its gradient are computed, both in the forward pass: the loss is
a weighted sum, so its gradient is known up to a factor (as in Wijmans et al. 2024, Cut Your Losses,
arXiv:2411.09009, and Liger Kernel, arXiv:2410.10989). Axes: N positions, C hidden_dim, V
vocabulary, M positions of a chunk.
"""

from zoo.layers.gather import pick
from zoo.lazy import keras, ops


def linear_cross_entropy(hidden, kernel, bias, targets, weights, chunk, gradients=True):
    """Computes the weighted sum of cross-entropies of `hidden @ kernel^T + bias`.

    Args:
      hidden: (N, C); products are computed in its dtype.
      kernel: (V, C).
      bias: (V,) or None.
      targets: (N,) int32.
      weights: (N,) float32; 0 for positions without a target.
      chunk: M; 0 for all positions at once.
      gradients: whether gradients are needed.

    Returns:
      `(loss, losses, correct)`: the sum, a float32 scalar; the cross-entropies (N,); whether the
      target is the most probable token, (N,) float32. The last two have no gradients. Of equally
      probable tokens only the first is correct, but with `gradients` all are.
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
    has_bias = bias is not None

    def run_chunk(rows, targets_M, weights_M, kernel, bias, with_gradients):
        logits = ops.cast(ops.matmul(rows, ops.transpose(kernel)), "float32")
        if has_bias:
            logits = logits + ops.cast(bias, "float32")
        largest = ops.max(logits, -1, keepdims=True)
        exponentials = ops.exp(logits - largest)
        total = ops.sum(exponentials, -1, keepdims=True)
        target_logits = pick(logits, targets_M)[:, None]
        losses = (ops.log(total) + largest - target_logits)[:, 0]
        if not with_gradients:
            correct = ops.equal(ops.cast(ops.argmax(logits, -1), targets_M.dtype), targets_M)
            return losses, ops.cast(correct, "float32"), None
        # argmax takes three times as long as max, about 3 % of an update of a small model.
        correct = ops.cast(target_logits >= largest, "float32")[:, 0]
        # The gradient of the logits is (softmax - target) * weight. The division by the total and
        # the weight are applied to (M, C), and the target is subtracted by an update of M elements,
        # to avoid passes over (M, V).
        scale = weights_M[:, None] / total
        indices = ops.stack([ops.arange(chunk, dtype="int32"), targets_M], -1)
        target_grads = ops.exp(target_logits - largest) - total
        logits_grad = ops.scatter_update(exponentials, indices, target_grads[:, 0])
        if keras.backend.standardize_dtype(rows.dtype) == "float16":
            logits_grad, scale = logits_grad / total, weights_M[:, None]  # float16 could overflow
        cast_grad = ops.cast(logits_grad, rows.dtype)
        scaled_rows = ops.cast(rows * ops.cast(scale, rows.dtype), rows.dtype)
        return (
            losses,
            correct,
            (
                ops.matmul(cast_grad, kernel) * ops.cast(scale, rows.dtype),
                ops.cast(ops.matmul(ops.transpose(cast_grad), scaled_rows), "float32"),
                ops.matmul(ops.transpose(scale), logits_grad)[0] if has_bias else None,
            ),
        )

    def run(hidden, kernel, bias, with_gradients):
        rows = ops.reshape(hidden, (chunks, chunk, hidden.shape[-1]))
        losses, correct, row_grads = [], [], []
        kernel_grad = bias_grad = 0.0
        for i in range(chunks):
            # Without a dependency on the previous chunk, the logits of all chunks would coexist.
            dependency = 0.0 if i == 0 else ops.stop_gradient(0.0 * losses[-1][0])
            chunk_losses, chunk_correct, grads = run_chunk(
                rows[i] + ops.cast(dependency, rows.dtype),
                *(targets[i], weights[i], kernel, bias, with_gradients),
            )
            losses.append(chunk_losses)
            correct.append(chunk_correct)
            if with_gradients:
                row_grads.append(grads[0])
                kernel_grad = kernel_grad + grads[1]
                bias_grad = bias_grad + grads[2] if has_bias else None
        losses, correct = ops.concatenate(losses), ops.concatenate(correct)
        if not with_gradients:
            return losses, correct, None
        return losses, correct, (ops.concatenate(row_grads), kernel_grad, bias_grad)

    if not gradients:
        losses, correct, _ = run(hidden, ops.cast(kernel, hidden.dtype), bias, False)
        loss = ops.sum(losses * ops.reshape(weights, (-1,)))
        return loss, losses[:positions], correct[:positions]

    flat_weights = ops.reshape(weights, (-1,))

    @ops.custom_gradient
    def differentiable(hidden, kernel, *bias):
        losses, correct, grads = run(
            hidden, ops.cast(kernel, hidden.dtype), bias[0] if bias else None, True
        )

        def gradient(*args, upstream=None):
            factor = upstream[0] if upstream is not None else args[0]
            gradients = [grads[0] * ops.cast(factor, grads[0].dtype)]
            gradients.append(ops.cast(grads[1] * factor, kernel.dtype))
            if has_bias:
                gradients.append(ops.cast(grads[2] * factor, bias[0].dtype))
            return gradients

        return (ops.sum(losses * flat_weights), losses, correct), gradient

    loss, losses, correct = differentiable(hidden, kernel, *([bias] if has_bias else []))
    return loss, ops.stop_gradient(losses)[:positions], ops.stop_gradient(correct)[:positions]
