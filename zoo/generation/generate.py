"""Text from a trained model: `zoo generate`, and in Python

    generator = Generator(zoo.load(workdir), tokenizer)
    for piece in generator.stream("ROMEO:", max_tokens=200, temperature=0.8):
        print(piece, end="", flush=True)

Many steps run inside one compiled loop: Python is back in charge at the end of a chunk only.
Axes: B prompts, W positions of the longest text, V vocabulary.
"""

import codecs
import dataclasses
import logging
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from zoo.errors import UsageError
from zoo.generation import sampling
from zoo.generation.beam_search import beam_search
from zoo.generation.decoding import decoding
from zoo.generation.generate_options import Options
from zoo.layers.xla import compiles
from zoo.models.adapter import Adapter
from zoo.special_tokens import END, FIRST_WORD, START

_LOG = logging.getLogger(__name__)

# Prompts shorter than this go through the loop, token by token: that is sooner done than tracing
# the function that computes all of a prompt at once.
PREFILL = 32
# Seconds between two pieces of a stream, which sets how many tokens a piece has; and the most.
SECONDS, CHUNK = 0.05, 64
# Added to the logits of tokens that must not be chosen. No temperature allowed makes it small.
_FORBIDDEN = -1e30


@dataclasses.dataclass
class _Run:
    """Texts in the making.

    Attributes:
      tokens: (B, W) int32: prompts, and what was generated up to `position`.
      cache: what the model knows of the positions before `position`.
      position: the last one that is filled.
      done: (B,) whether a text has ended.
      lengths: (B,) of the prompts.
      ends: (B,) where a text must end at the latest.
      uniforms: (B, W) random numbers: that at a place chooses its token.
      weights: what `decoding.weights` prepared.
    """

    tokens: tf.Tensor
    cache: object
    position: int
    done: tf.Tensor
    lengths: np.ndarray
    ends: np.ndarray
    uniforms: tf.Tensor
    weights: object


class Generator:
    """Continues prompts.

    Args:
      model: a decoder (gpt, llama) or an LSTM.
      tokenizer: for text in and out; tokens it does not have, and special ones but the end, are
        never generated. Without one, prompts are tokens and all may be generated; for another
        vocabulary than the zoo's give `end_id`, too, and no empty prompt.
      sequence_length: the largest number of positions, for models that do not know it (rotary
        positions); the smaller of both counts.
      trained_length: positions that were trained; that a text goes beyond them is said once, on
        standard error.
      start: whether a prompt begins a document, and with the token for that. Else it is text from
        anywhere in one.
      jit_compile: whether XLA compiles the loop; None where it can. Without it steps take about
        three times as long.

    Raises:
      UsageError: for a model that generates no text, or a tokenizer that is not the model's.
    """

    def __init__(
        self, model, tokenizer=None, *, sequence_length=None, trained_length=None, start=False,
        jit_compile=None,
    ):  # fmt: skip
        self.model, self.tokenizer = model, tokenizer
        self.trained_length, self.start = trained_length, start
        self.jit_compile = compiles() if jit_compile is None else jit_compile
        self.decoding = decoding(model)
        limits = [self.decoding.sequence_length, sequence_length]
        self.sequence_length = min((n for n in limits if n), default=None)
        self.vocabulary_size = self.decoding.vocabulary_size
        forbidden = np.zeros(self.vocabulary_size, np.float32)
        if tokenizer is not None:
            if tokenizer.vocabulary_size > self.vocabulary_size:
                raise UsageError(
                    f"The tokenizer is not the model's: it has {tokenizer.vocabulary_size} tokens, "
                    f"the model {self.vocabulary_size}."
                )
            forbidden[:FIRST_WORD] = forbidden[tokenizer.vocabulary_size :] = _FORBIDDEN
            forbidden[END] = 0
        self._forbidden = tf.constant(forbidden)
        self._allowed = int((forbidden == 0).sum())
        # The twin that recomputes everything is the plain one in this, too.
        self._logits = tf.function(self._recompute, autograph=False)
        self._prefills = {}
        self._loops = {}
        self._said: set[str] = set()

    # --- text ------------------------------------------------------------------------------------

    def stream(self, prompt: str, max_tokens: int, **options) -> Iterator[str]:
        """Returns the continuation of one prompt as it comes, in whole characters.

        What is wrong with the prompt or the options is raised at once, not at the first piece.

        Args:
          prompt: a text; "" for the beginning of one.
          max_tokens: the longest continuation.
          **options: of `tokens`.
        """
        ids = self._checked(self.encode(prompt))
        options = Options(max_tokens, **options)

        def pieces():
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            before = prompt[-1:]
            for found in self._pieces(ids, options):
                piece = decoder.decode(self.tokenizer.decode_bytes(found))
                if piece := self.tokenizer.tidy(piece, before):
                    yield piece
                    before = piece[-1]

        return pieces()

    def text(self, prompts: list[str], max_tokens: int, **options) -> list[str]:
        """Returns the continuation of each prompt; for `options` see `tokens`."""
        found = self.tokens([self.encode(prompt) for prompt in prompts], max_tokens, **options)
        return [self.decode(ids, prompt) for prompt, ids in zip(prompts, found, strict=True)]

    def encode(self, prompt: str) -> list[int]:
        """Returns a prompt's tokens."""
        if self.tokenizer is None:
            raise UsageError("Text needs a tokenizer; this generator has none: use tokens().")
        return [START] * self.start + self.tokenizer.encode(prompt).tolist()

    def decode(self, ids, prompt: str) -> str:
        """Returns the text of tokens that follow a prompt, without a last half of a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(self.tokenizer.decode_bytes(ids))
        return self.tokenizer.tidy(text, prompt[-1:])

    # --- tokens ----------------------------------------------------------------------------------

    def tokens(
        self,
        prompts: list[list[int]],
        max_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        beams: int = 1,
        seed: int = 0,
        end_id: int | None = END,
        use_cache: bool = True,
    ) -> list[np.ndarray]:
        """Continues prompts; the batch changes no text.

        Args:
          prompts: tokens of each, of any lengths; an empty one begins a text.
          max_tokens: the longest continuation. It ends sooner where the model's positions do.
          temperature: 0 takes the likeliest token each time.
          top_k: how many of the likeliest tokens are drawn from; 0 for all.
          top_p: probability of the nucleus that is drawn from; 1 for all.
          beams: of a beam search, which draws nothing; 1 for none.
          seed: prompt b draws with seed + b. The number that chooses a token depends on that and
            on the token's place alone.
          end_id: the token that ends a text; None for none.
          use_cache: False computes everything again for each token: the slow, plain twin. Not
            with beams.

        Returns:
          New tokens (n,) int32 of each prompt, without the end token.

        Raises:
          UsageError: for a prompt that fills the model's positions, or a value out of range.
        """
        options = Options(
            max_tokens, temperature, top_k, top_p, beams, seed, end_id, use_cache
        )  # fmt: skip
        prompts = [self._checked(prompt) for prompt in prompts]
        if not prompts:
            return []
        if beams > 1:
            return [self._search(prompt, options) for prompt in prompts]
        run = self._begin(prompts, options)
        self._advance(run, int(max(run.ends)), options)
        found = []
        for row, start, stop in zip(run.tokens.numpy(), run.lengths, run.ends, strict=True):
            found.append(_cut(row[start : min(stop, run.position + 1)], options.end_id))
            self._say(start + len(found[-1]), stop, start + max_tokens)
        return found

    def _pieces(self, prompt, options: "Options"):
        """Yields new tokens of one prompt, as many at a time as take about `SECONDS`."""
        if options.beams > 1:
            yield self._search(prompt, options)
            return
        run = self._begin([prompt], options)
        told, stop, count = len(prompt), int(run.ends[0]), 1
        while told < stop:
            began = time.perf_counter()
            self._advance(run, min(told + count, stop), options)
            rate = count / (time.perf_counter() - began)
            count = min(max(1, int(rate * SECONDS)), CHUNK)
            new = run.tokens[0, told : run.position + 1].numpy()
            piece = _cut(new, options.end_id)
            yield piece
            if len(piece) < len(new):
                self._say(told + len(piece), stop, stop)
                return
            told += len(piece)
        self._say(told, stop, len(prompt) + options.max_tokens)

    def _say(self, length, stop, wanted) -> None:
        """Says once that the model's positions ended a text, or that it went beyond trained ones.

        Args:
          length: of the text in tokens.
          stop: where it had to end.
          wanted: where the user's limit would have ended it.
        """
        if self.trained_length and length > self.trained_length:
            self._say_once(
                f"the text goes beyond the {self.trained_length} positions that were trained "
                "(data.sequence_length), and may fall apart there"
            )
        if length == stop < wanted:
            self._say_once(
                f"the text ends at the model's {self.sequence_length} positions, prompt included"
            )

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            _LOG.warning(line)

    def _checked(self, prompt) -> list[int]:
        prompt = [int(token) for token in prompt] or [START]
        for token in prompt:
            if not 0 <= token < self.vocabulary_size:
                raise UsageError(
                    f"Tokens lie in 0 … {self.vocabulary_size - 1}. Received: {token} in a prompt."
                )
        if self.sequence_length and len(prompt) >= self.sequence_length:
            raise UsageError(
                f"A prompt of {len(prompt)} tokens leaves no room in the model's "
                f"{self.sequence_length} positions."
            )
        return prompt

    def _width(self, length: int) -> int:
        """Rounds a number of positions up to a power of two, so that few loops are compiled."""
        width = max(64, 1 << (length - 1).bit_length())
        return min(width, self.sequence_length or width)

    # --- drawing ---------------------------------------------------------------------------------

    def _begin(self, prompts, options: "Options") -> _Run:
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        ends = lengths + options.max_tokens
        ends = np.minimum(ends, self.sequence_length or ends)
        width = self._width(int(max(ends)))
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        position, cache = 0, ()
        if options.use_cache:
            cache = self.decoding.start(len(prompts), width)
            if min(lengths) > PREFILL:
                # All but the last token that all prompts have: that one the loop begins with.
                position = int(min(lengths)) - 1
                cache = self._prefill(tokens[:, :position], cache)
        return _Run(
            tf.constant(tokens), cache, position, tf.zeros(len(prompts), tf.bool), lengths, ends,
            tf.constant(uniforms(options.seed, *tokens.shape)), self.decoding.weights(),
        )  # fmt: skip

    def _prefill(self, tokens, cache):
        """Returns the cache after tokens (B, n); traced once for all n."""
        tokens = tf.convert_to_tensor(tokens, tf.int32)
        shapes = tokens.shape[0], *(x.shape for x in tf.nest.flatten(cache))
        if shapes not in self._prefills:
            specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, cache)
            self._prefills[shapes] = tf.function(
                lambda tokens, cache: self.decoding.step(tokens, cache, 0)[1],
                input_signature=[tf.TensorSpec((tokens.shape[0], None), tf.int32), specs],
                autograph=False,
            )
        return self._prefills[shapes](tokens, cache)

    def _advance(self, run: _Run, stop: int, options: "Options") -> None:
        """Fills positions up to `stop`, exclusive, or until all texts have ended."""
        kind, use_cache = options.kind(self._allowed), options.use_cache
        if (kind, use_cache) not in self._loops:
            self._loops[kind, use_cache] = tf.function(
                self._loop(kind) if use_cache else self._next(kind),
                jit_compile=self.jit_compile and use_cache, autograph=False,
            )  # fmt: skip
        compiled = self._loops[kind, use_cache]
        settings = (
            run.lengths, run.uniforms, self._forbidden,
            *(np.float32(value) for value in (options.temperature, options.top_p)),
            np.int32(options.end_id),
        )  # fmt: skip
        settings = [tf.convert_to_tensor(value) for value in settings]
        last = tf.constant(stop - 1, tf.int32)
        if use_cache:
            run.tokens, run.cache, position, run.done = compiled(
                run.tokens, run.cache, tf.constant(run.position, tf.int32), run.done, last,
                settings, run.weights,
            )  # fmt: skip
            run.position = int(position)
            return
        while run.position < stop - 1 and not run.done.numpy().all():
            position = tf.constant(run.position, tf.int32)
            logits = self._logits(run.tokens, position)
            run.tokens, run.done = compiled(logits, run.tokens, position, run.done, settings)
            run.position += 1

    def _recompute(self, tokens, position):
        """Returns the logits (B, V) after a position, from the model itself."""
        inputs = {"tokens": tokens, "segments": tf.ones_like(tokens)}
        names = [tensor.name for tensor in self.model.inputs]
        out = self.model({name: inputs[name] for name in names}, training=False)
        out = tf.gather(out, position, axis=1)
        return tf.math.log(out) if Adapter(self.model).probabilities else out

    def _next(self, kind):
        """Returns the function that puts a token at the place after a position."""

        def put(logits, tokens, position, done, settings):
            lengths, numbers, forbidden, temperature, top_p, end_id = settings
            batch, place = tokens.shape[0], position + 1
            logits = logits + forbidden
            uniform = tf.slice(numbers, (0, place), (batch, 1))[:, 0]
            if kind == "greedy":
                chosen = sampling.greedy(logits)
            elif kind == "sample":
                chosen = sampling.sample(logits, uniform, temperature)
            elif kind == "top_p":
                chosen = sampling.top_p(logits, uniform, top_p, temperature)
            else:
                chosen = sampling.top_k(logits, uniform, kind, temperature, top_p)
            given = tf.slice(tokens, (0, place), (batch, 1))[:, 0]
            inside = place < lengths
            chosen = tf.where(inside, given, tf.where(done, 0, chosen))
            done = done | (~inside & (chosen == end_id))
            here = (tf.range(tokens.shape[1]) == place)[None]
            return tf.where(here, chosen[:, None], tokens), done

        return put

    def _loop(self, kind):
        """Returns the function that goes on from a position to another, or to the texts' ends."""
        put = self._next(kind)

        def loop(tokens, cache, position, done, last, settings, weights):
            batch = tokens.shape[0]

            def body(tokens, cache, position, done):
                token = tf.slice(tokens, (0, position), (batch, 1))
                logits, cache = self.decoding.step(token, cache, position, weights)
                tokens, done = put(logits[:, 0], tokens, position, done, settings)
                return tokens, cache, position + 1, done

            return tf.while_loop(
                lambda tokens, cache, position, done: (position < last) & ~tf.reduce_all(done),
                body,
                (tokens, cache, position, done),
            )

        return loop

    # --- searching -------------------------------------------------------------------------------

    def _search(self, prompt, options: "Options"):
        """Returns the best continuation that a beam search finds."""
        stop = min(len(prompt) + options.max_tokens, self.sequence_length or 2**31 - 1)
        cache = self.decoding.start(1, self._width(stop))
        if len(prompt) > 1:
            cache = self._prefill([prompt[:-1]], cache)
        tokens, _ = beam_search(
            self.decoding, cache, prompt[-1:], stop - len(prompt), options.beams, options.end_id,
            first=len(prompt) - 1, forbidden=self._forbidden, jit_compile=self.jit_compile,
        )  # fmt: skip
        found = _cut(tokens[0, 0].numpy(), options.end_id)
        self._say(len(prompt) + len(found), stop, len(prompt) + options.max_tokens)
        return found


def _cut(ids, end_id):
    """Returns tokens up to the first end, exclusive."""
    found = np.flatnonzero(ids == end_id)
    return ids[: found[0]] if found.size else ids


def uniforms(seed: int, batch: int, length: int) -> np.ndarray:
    """Returns random numbers (batch, length) float32 in [0, 1).

    Row b is a function of seed + b, and begins the same at any length.
    """
    return np.stack(
        [
            np.random.Generator(np.random.Philox(seed + b)).random(length, np.float32)
            for b in range(batch)
        ]
    )
