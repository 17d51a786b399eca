"""Beam search: an approximation of the most probable text, with `beams` hypotheses per step.

Works with every class of `zoo.generation.decoding`, whatever the contents of its cache. Axes: B
sequences, K beams, V vocabulary size.
"""

import tensorflow as tf

from zoo.generation.decoding import reorder

INVALID_SCORE = -1e9  # score of an invalid text, far below any sum of log-probabilities


def beam_search(
    decoding,
    cache,
    first_tokens,
    max_tokens: int,
    beams: int,
    end_id: int | tuple[int, ...],
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
      end_id: id or ids of the tokens that end a text.
      length_penalty: exponent of the length penalty, which favors long texts; 0 for no penalty.
      first: position of `first_tokens`.
      forbidden: (V,) float32, added to the logits; None for zeros.
      jit_compile: whether XLA compiles the search. A new B or K, or a max_tokens beyond the next
        power of two, needs a new trace.

    Returns:
      `(tokens, scores)`: (B, K, max_tokens) int32, best text first, 0 after the end token; and
      (B, K) float32, about `INVALID_SCORE` for missing texts if there are fewer than K.

    Raises:
      ValueError: if length_penalty is negative, since the search would then stop too early.
    """
    if length_penalty < 0:
        raise ValueError(f"length_penalty must be at least 0. Received: {length_penalty}.")
    width = max(16, 1 << (max_tokens - 1).bit_length())
    if forbidden is None:
        forbidden = tf.zeros((decoding.vocabulary_size,))
    # Stored in the decoding object, so that later calls reuse the compiled function.
    compiled_searches = decoding.__dict__.setdefault("_beam_searches", {})
    key = width, beams, end_id, jit_compile
    if key not in compiled_searches:

        def search(cache, first_tokens, first, limit, forbidden, length_penalty):
            return _search(
                decoding, cache, first_tokens, first, limit, forbidden, length_penalty,
                width, beams, end_id,
            )  # fmt: skip

        compiled_searches[key] = tf.function(search, jit_compile=jit_compile, autograph=False)
    tokens, scores = compiled_searches[key](
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

    def is_unfinished(step, *state):
        return (step < limit) & ~tf.reduce_all(state[-1])

    def body(step, last, cache, texts, scores, best_texts, best_scores, is_done):
        logits, cache = decoding.step(last, cache, first + step)
        log_probabilities = tf.nn.log_softmax(logits[:, 0] + forbidden)
        vocabulary = log_probabilities.shape[-1]
        candidate_scores = scores[:, :, None] + tf.reshape(
            log_probabilities, (batch, beams, vocabulary)
        )
        candidate_scores, indices = tf.math.top_k(
            tf.reshape(candidate_scores, (batch, beams * vocabulary)), beams
        )
        beam, token = indices // vocabulary, indices % vocabulary
        is_position = tf.one_hot(step, width, on_value=True, off_value=False, dtype=tf.bool)
        texts = tf.where(is_position, token[:, :, None], tf.gather(texts, beam, batch_dims=1))
        rows = beam + beams * tf.range(batch)[:, None]
        cache = reorder(cache, tf.reshape(rows, (-1,)), batch * beams, memory=False)

        is_end = tf.reduce_any(token[:, :, None] == tf.reshape(end_id, (-1,)), axis=-1)
        is_finished = is_end & (candidate_scores > INVALID_SCORE / 2) & ~is_done[:, None]
        finished_scores = tf.where(is_finished, candidate_scores / penalty(step + 1), INVALID_SCORE)
        best_texts, best_scores = _best(
            [(best_texts, best_scores), (texts, finished_scores)], beams
        )
        scores = tf.where(is_end, INVALID_SCORE, candidate_scores)
        # Sums only fall and the divisor is largest at `limit`: an upper bound of the final score.
        largest = tf.reduce_max(scores, axis=1)
        is_done = (
            is_done
            | (largest < INVALID_SCORE / 2)
            | (largest / penalty(limit) <= best_scores[:, -1])
        )
        last = tf.reshape(token, (batch * beams, 1))
        return step + 1, last, cache, texts, scores, best_texts, best_scores, is_done

    texts = tf.zeros((batch, beams, width), tf.int32)
    state = tf.while_loop(
        is_unfinished,
        body,
        (
            0,
            tf.reshape(tf.repeat(first_tokens, beams), (batch * beams, 1)),
            cache,
            texts,
            tf.tile([[0.0] + [INVALID_SCORE] * (beams - 1)], (batch, 1)),  # equal beams at first
            texts,
            tf.fill((batch, beams), INVALID_SCORE),
            tf.zeros((batch,), tf.bool),
        ),
    )
    _, _, _, texts, scores, best_texts, best_scores, is_done = state
    is_incomplete = ~is_done[:, None] & (scores > INVALID_SCORE / 2)
    scores = tf.where(is_incomplete, scores / penalty(limit), INVALID_SCORE)
    return _best([(best_texts, best_scores), (texts, scores)], beams)


def _best(groups, beams):
    """Returns the `beams` texts with the best scores among groups `(texts, scores)`."""
    texts = tf.concat([texts for texts, _ in groups], axis=1)
    scores, indices = tf.math.top_k(tf.concat([scores for _, scores in groups], axis=1), beams)
    return tf.gather(texts, indices, batch_dims=1), scores
