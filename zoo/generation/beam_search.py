"""Beam search: an approximation of the most probable text, with `beams` hypotheses per step.

Works with every class of `zoo.generation.decoding`, whatever the contents of its cache. Axes: B
sequences, K beams, V vocabulary size.
"""

import tensorflow as tf

from zoo.generation.decoding import reorder

NEVER = -1e9  # score of an invalid text, far below any sum of log-probabilities


def beam_search(
    decoding,
    cache,
    first_tokens,
    max_tokens: int,
    beams: int,
    end_id: int,
    length_penalty: float = 0.6,
    *,
    first: int = 0,
    forbidden=None,
    jit_compile: bool = True,
):
    """Finds probable continuations.

    The score of a text Y of n tokens, end token included, is log P(Y) / ((5 + n) / 6) **
    length_penalty (Wu et al. 2016, arXiv:1609.08144, equation 14, without coverage). Each step
    extends all hypotheses by one token and keeps the K most probable ones. Hypotheses with an end
    token become finished texts; the others continue. The search of a sequence stops if no
    hypothesis is left, or if none can exceed the worst score of K finished texts. One beam is
    greedy decoding; V ** max_tokens beams are an exhaustive search.

    Args:
      decoding: result of `zoo.generation.decoding.decoding`, or an object with the same `step`.
      cache: cache of B sequences: positions before `first`, and space for max_tokens more.
      first_tokens: (B,) int32, tokens at position `first`; the texts start after them.
      max_tokens: maximum length of a text; a hypothesis of this length counts as finished.
      beams: number of beams K.
      end_id: id of the token that ends a text.
      length_penalty: exponent of the length penalty, which favors long texts; 0 for no penalty.
      first: position of `first_tokens`.
      forbidden: (V,) float32, added to the logits; None for zeros.
      jit_compile: whether XLA compiles the search. A new B or K, or a max_tokens beyond the next
        power of two, needs a new trace.

    Returns:
      `(tokens, scores)`: (B, K, max_tokens) int32, best text first, 0 after the end token; and
      (B, K) float32, about `NEVER` for missing texts if there are fewer than K.

    Raises:
      ValueError: if length_penalty is negative, since the search would then stop too early.
    """
    if length_penalty < 0:
        raise ValueError(f"length_penalty is 0 or more. Received: {length_penalty}.")
    width = max(16, 1 << (max_tokens - 1).bit_length())
    if forbidden is None:
        forbidden = tf.zeros((decoding.vocabulary_size,))
    # Stored in the decoding object, so that later calls reuse the compiled function.
    compiled = decoding.__dict__.setdefault("_beam_searches", {})
    key = width, beams, end_id, jit_compile
    if key not in compiled:

        def search(cache, first_tokens, first, limit, forbidden, length_penalty):
            return _search(
                decoding, cache, first_tokens, first, limit, forbidden, length_penalty,
                width, beams, end_id,
            )  # fmt: skip

        compiled[key] = tf.function(search, jit_compile=jit_compile, autograph=False)
    tokens, scores = compiled[key](
        cache,
        tf.convert_to_tensor(first_tokens, tf.int32),
        tf.convert_to_tensor(first, tf.int32),
        tf.convert_to_tensor(max_tokens, tf.int32),
        tf.convert_to_tensor(forbidden, tf.float32),
        tf.convert_to_tensor(length_penalty, tf.float32),
    )
    return tokens[:, :, :max_tokens], scores


def _search(
    decoding, cache, first_tokens, first, limit, forbidden, length_penalty, width, beams, end_id
):
    """Runs `beam_search` as one graph; texts have shape (B, K, width)."""
    batch = first_tokens.shape[0]
    # Row b * K + k of the cache is beam k of sequence b.
    cache = reorder(cache, tf.repeat(tf.range(batch), beams), batch)

    def penalty(length):
        return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** length_penalty

    def going_on(step, *state):
        return (step < limit) & ~tf.reduce_all(state[-1])

    def body(step, last, cache, texts, scores, done_texts, done_scores, done):
        logits, cache = decoding.step(last, cache, first + step)
        gains = tf.nn.log_softmax(logits[:, 0] + forbidden)
        vocabulary = gains.shape[-1]
        sums = scores[:, :, None] + tf.reshape(gains, (batch, beams, vocabulary))
        sums, found = tf.math.top_k(tf.reshape(sums, (batch, beams * vocabulary)), beams)
        beam, token = found // vocabulary, found % vocabulary
        place = tf.one_hot(step, width, on_value=True, off_value=False, dtype=tf.bool)
        texts = tf.where(place, token[:, :, None], tf.gather(texts, beam, batch_dims=1))
        rows = beam + beams * tf.range(batch)[:, None]
        cache = reorder(cache, tf.reshape(rows, (-1,)), batch * beams, memory=False)

        ends = token == end_id
        new = ends & (sums > NEVER / 2) & ~done[:, None]
        new_scores = tf.where(new, sums / penalty(step + 1), NEVER)
        done_texts, done_scores = _best([(done_texts, done_scores), (texts, new_scores)], beams)
        scores = tf.where(ends, NEVER, sums)
        # Sums only fall and the divisor is largest at `limit`: an upper bound of the final score.
        best = tf.reduce_max(scores, axis=1)
        done = done | (best < NEVER / 2) | (best / penalty(limit) <= done_scores[:, -1])
        last = tf.reshape(token, (batch * beams, 1))
        return step + 1, last, cache, texts, scores, done_texts, done_scores, done

    texts = tf.zeros((batch, beams, width), tf.int32)
    state = tf.while_loop(
        going_on,
        body,
        (
            0,
            tf.reshape(tf.repeat(first_tokens, beams), (batch * beams, 1)),
            cache,
            texts,
            tf.tile([[0.0] + [NEVER] * (beams - 1)], (batch, 1)),  # equal beams at first
            texts,
            tf.fill((batch, beams), NEVER),
            tf.zeros((batch,), tf.bool),
        ),
    )
    _, _, _, texts, scores, done_texts, done_scores, done = state
    whole = ~done[:, None] & (scores > NEVER / 2)
    scores = tf.where(whole, scores / penalty(limit), NEVER)
    return _best([(done_texts, done_scores), (texts, scores)], beams)


def _best(groups, beams):
    """Returns the `beams` texts with the best scores among groups `(texts, scores)`."""
    texts = tf.concat([texts for texts, _ in groups], axis=1)
    scores, kept = tf.math.top_k(tf.concat([scores for _, scores in groups], axis=1), beams)
    return tf.gather(texts, kept, batch_dims=1), scores
