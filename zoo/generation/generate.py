"""Text generation with a trained model, for `zoo generate` and in Python:

    generator = Generator(zoo.load(workdir), tokenizer)
    for piece in generator.stream("ROMEO:", max_tokens=200, temperature=0.8):
        print(piece, end="", flush=True)

One call of the compiled loop generates many tokens; Python code runs only between calls. With
attention sinks (`zoo.layers.attention_forms.sinks`), texts may have any length: the loop sees a
block of positions at a time, so that its memory and its time per token do not grow with the text.
Axes: B prompts, W positions (the length of the longest text or of a block), V vocabulary size.
"""

import codecs
import dataclasses
import logging
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from zoo.data.text.special_tokens import SpecialIds
from zoo.errors import UsageError
from zoo.generation import sampling
from zoo.generation.beam_search import beam_search
from zoo.generation.decoding import decoding
from zoo.generation.generate_options import FROM_TOKENIZER, Options
from zoo.layers.xla import compiles
from zoo.models.adapter import Adapter

_LOG = logging.getLogger(__name__)

# Prompts of up to this many tokens run token by token through the loop: tracing a function for the
# whole prompt would take longer.
PREFILL = 32
# Target seconds per piece of a stream, and the maximum number of tokens per piece.
SECONDS, CHUNK = 0.05, 64
# Number of positions in a block of a text with attention sinks.
BLOCK = 512
# Added to the logits of forbidden tokens; still large when divided by the highest temperature.
_FORBIDDEN = -1e30


@dataclasses.dataclass
class _Run:
    """State of the generation of a batch of texts.

    Attributes:
      prompts: tokens of each prompt.
      offset: position of the first column of `tokens`; 0 without attention sinks.
      tokens: (B, W) int32: prompts and the tokens generated up to `position`.
      cache: decoding cache of the positions before `position`.
      position: last position that is filled.
      done: (B,) bool: whether the text has ended.
      lengths: (B,) int32: number of tokens per prompt.
      ends: (B,) maximum number of tokens per text, prompt included.
      uniforms: (B, W) float32: random number that selects the token at a position.
      weights: result of `decoding.weights`.
    """

    prompts: list[list[int]]
    offset: int
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
      tokenizer: tokenizer of the model, for text input and output. Tokens outside its vocabulary
        and special tokens other than the end token are never generated. Without a tokenizer,
        prompts are tokens and every token may be generated; vocabularies not made by the zoo then
        require `end_id` and nonempty prompts.
      sequence_length: maximum number of positions, for models without a limit (rotary positions).
        If the model has a limit, the smaller of the two applies.
      trained_length: number of positions used in training; longer texts log one warning.
      attention_sinks: number of first positions that stay in the cache together with the latest
        ones; together they are as many as the positions of training (`trained_length`, else
        `sequence_length`). Texts may then have any length. 0 for none; 4 is usual. Requires rotary
        positions.
      start: whether prompts begin a document; if so, the start token is prepended.
      jit_compile: whether XLA compiles the loop; None: if XLA is available. Without XLA, a step
        takes about three times as long.

    Raises:
      UsageError: if the model cannot generate text, the tokenizer does not match the model, or
        attention sinks are not supported or not fewer than the positions of the cache.
    """

    def __init__(
        self, model, tokenizer=None, *, sequence_length=None, trained_length=None,
        attention_sinks=0, start=False, jit_compile=None,
    ):  # fmt: skip
        self.model, self.tokenizer = model, tokenizer
        self.special = SpecialIds() if tokenizer is None else tokenizer.special
        self.trained_length, self.start = trained_length, start
        self.jit_compile = compiles() if jit_compile is None else jit_compile
        self.decoding = decoding(model, attention_sinks or None)
        limits = [self.decoding.sequence_length, sequence_length]
        self.sequence_length = min((n for n in limits if n), default=None)
        self.cache_length = None  # None without attention sinks
        if attention_sinks:
            self.cache_length = trained_length or sequence_length or 0
            if not 0 < attention_sinks < self.cache_length:
                raise UsageError(
                    "attention_sinks must be from 1 to one less than the number of positions used "
                    f"in training, {self.cache_length}; 0 disables them. Received: "
                    f"{attention_sinks}."
                )
            # Positions count inside the cache, so that no length of the text exceeds them.
            self.sequence_length = self.trained_length = None
        self.vocabulary_size = self.decoding.vocabulary_size
        forbidden = np.zeros(self.vocabulary_size, np.float32)
        if tokenizer is not None:
            if tokenizer.vocabulary_size > self.vocabulary_size:
                raise UsageError(
                    f"The tokenizer does not match the model: it has {tokenizer.vocabulary_size} "
                    f"tokens, but the model supports {self.vocabulary_size}."
                )
            forbidden[list(self.special.control)] = _FORBIDDEN
            forbidden[tokenizer.vocabulary_size :] = _FORBIDDEN
            forbidden[list(self.special.stops)] = 0
        self._forbidden = tf.constant(forbidden)
        self._allowed = int((forbidden == 0).sum())
        # Not compiled by XLA, to keep this reference simple.
        self._logits = tf.function(self.logits_without_cache, autograph=False)
        self._prefills = {}
        self._loops = {}
        self._logged: set[str] = set()

    # --- text ------------------------------------------------------------------------------------

    def stream(self, prompt: str, max_tokens: int, **options) -> Iterator[str]:
        """Returns an iterator that yields the continuation of a prompt in whole characters.

        Errors in the prompt or the options are raised by this call, not by the iterator.

        Args:
          prompt: a text; "" to start a new text.
          max_tokens: maximum number of new tokens.
          **options: options of `tokens`.
        """
        ids = self._check_prompt(self.encode(prompt))
        options = self._check_options(Options(max_tokens, **options))

        def pieces():
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            last_character = prompt[-1:]
            for ids_of_piece in self._pieces(ids, options):
                piece = decoder.decode(self.tokenizer.decode_bytes(ids_of_piece))
                if piece := self.tokenizer.tidy(piece, last_character):
                    yield piece
                    last_character = piece[-1]

        return pieces()

    def text(self, prompts: list[str], max_tokens: int, **options) -> list[str]:
        """Returns the continuation of each prompt; see `tokens` for the options."""
        continuations = self.tokens(
            [self.encode(prompt) for prompt in prompts], max_tokens, **options
        )
        return [
            self.decode(ids, prompt) for prompt, ids in zip(prompts, continuations, strict=True)
        ]

    def encode(self, prompt: str) -> list[int]:
        """Returns the tokens of a prompt."""
        if self.tokenizer is None:
            raise UsageError(
                "Generation from text requires a tokenizer. Without a tokenizer, call tokens()."
            )
        first = [self.special.start] if self.start and self.special.start is not None else []
        return first + self.tokenizer.encode(prompt).tolist()

    def decode(self, ids, prompt: str) -> str:
        """Returns the text of tokens after a prompt, without an incomplete last character."""
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
        end_id: int | tuple[int, ...] | None = FROM_TOKENIZER,
        use_cache: bool = True,
    ) -> list[np.ndarray]:
        """Continues prompts. The result for a prompt does not depend on the other prompts.

        Args:
          prompts: tokens of each prompt, of any lengths; an empty prompt starts a new text.
          max_tokens: maximum number of new tokens; the limit of the model may end a text earlier.
          temperature: temperature of the softmax; 0 always selects the most probable token.
          top_k: number of most probable tokens to sample from; 0 for all.
          top_p: probability mass of the nucleus to sample from; 1 for all tokens.
          beams: number of beams of a beam search, which uses no random numbers; 1 for sampling.
          seed: random seed; prompt b uses seed + b. The random number that selects a token depends
            only on this seed and the token's position.
          end_id: id or ids of the tokens that end a text; None for no such token. By default those
            of the tokenizer, or <end>.
          use_cache: False computes all positions again for each token: the slow reference, which
            does not support `beams`.

        Returns:
          New tokens of each prompt, (n,) int32, without the end token.

        Raises:
          UsageError: if a prompt leaves no free position, or a value is out of range.
        """
        options = self._check_options(
            Options(max_tokens, temperature, top_k, top_p, beams, seed, end_id, use_cache)
        )
        prompts = [self._check_prompt(prompt) for prompt in prompts]
        if not prompts:
            return []
        if beams > 1:
            return [self._beam_search(prompt, options) for prompt in prompts]
        run = self._start_run(prompts, options)
        first = run.position + 1
        rows = self._advance(run, int(max(run.ends)), options)
        end_ids = options.end_ids(self.tokenizer)
        continuations = []
        for row, start, stop in zip(rows, run.lengths, run.ends, strict=True):
            continuations.append(_before_end_token(row[start - first : stop - first], end_ids))
            self._warn_about_length(start + len(continuations[-1]), stop, start + max_tokens)
        return continuations

    def _pieces(self, prompt, options: "Options"):
        """Yields new tokens of one prompt in pieces that take about `SECONDS` each."""
        if options.beams > 1:
            yield self._beam_search(prompt, options)
            return
        run = self._start_run([prompt], options)
        end_ids = options.end_ids(self.tokenizer)
        num_yielded, stop, count = len(prompt), int(run.ends[0]), 1
        while num_yielded < stop:
            began, first = time.perf_counter(), run.position + 1
            (row,) = self._advance(run, min(num_yielded + count, stop), options)
            rate = count / (time.perf_counter() - began)
            count = min(max(1, int(rate * SECONDS)), CHUNK)
            new = row[num_yielded - first :]
            piece = _before_end_token(new, end_ids)
            yield piece
            if len(piece) < len(new):
                self._warn_about_length(num_yielded + len(piece), stop, stop)
                return
            num_yielded += len(piece)
        self._warn_about_length(num_yielded, stop, len(prompt) + options.max_tokens)

    def _warn_about_length(self, length, stop, requested_length) -> None:
        """Warns once if the model's limit ended a text, or if a text exceeds `trained_length`.

        Args:
          length: length of the text in tokens, prompt included.
          stop: maximum length of the text under all limits.
          requested_length: maximum length of the text according to the user.
        """
        if self.trained_length and length > self.trained_length:
            self._warn_once(
                f"the text exceeds the {self.trained_length} positions used in training "
                "(data.sequence_length): text beyond them may be incoherent"
            )
        if length == stop < requested_length:
            self._warn_once(
                f"the text ends at the model's limit of {self.sequence_length} positions, which "
                "includes the prompt"
            )

    def _warn_once(self, line: str) -> None:
        if line not in self._logged:
            self._logged.add(line)
            _LOG.warning(line)

    def _check_prompt(self, prompt) -> list[int]:
        prompt = [int(token) for token in prompt] or [self._first_token()]
        for token in prompt:
            if not 0 <= token < self.vocabulary_size:
                raise UsageError(
                    f"Tokens of a prompt must be from 0 to {self.vocabulary_size - 1}. Received: "
                    f"{token}."
                )
        if self.sequence_length and len(prompt) >= self.sequence_length:
            raise UsageError(
                f"A prompt must have fewer tokens than the model's {self.sequence_length} "
                f"positions. Received: {len(prompt)} tokens."
            )
        return prompt

    def _first_token(self) -> int:
        """Returns the token that starts a text without a prompt."""
        special = self.special
        first = special.end if special.start is None else special.start
        if first is None:
            raise UsageError("The tokenizer has no token to start a text with: give a prompt.")
        return first

    def _check_options(self, options: "Options") -> "Options":
        if self.cache_length and (options.beams > 1 or not options.use_cache):
            raise UsageError(
                "Attention sinks support neither a beam search nor use_cache=False. Received: "
                f"beams={options.beams}, use_cache={options.use_cache}."
            )
        return options

    def _width(self, length: int) -> int:
        """Rounds a number of positions up to a power of two, so that few loops are compiled."""
        width = max(64, 1 << (length - 1).bit_length())
        return min(width, self.sequence_length or width)

    # --- sampling --------------------------------------------------------------------------------

    def _start_run(self, prompts, options: "Options") -> _Run:
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        ends = lengths + options.max_tokens
        ends = np.minimum(ends, self.sequence_length or ends)
        width = BLOCK if self.cache_length else self._width(int(max(ends)))
        position, cache = 0, ()
        if options.use_cache:
            cache = self.decoding.start(len(prompts), self.cache_length or width)
            if min(lengths) > PREFILL:
                # The loop starts with the last token of the shortest prompt, or after the prefix
                # that fills the cache.
                position = int(min(lengths)) - 1
                position = min(position, self.cache_length or position)
                cache = self._prefill([prompt[:position] for prompt in prompts], cache)
        offset = position if self.cache_length else 0
        return _Run(
            prompts, offset, tf.constant(_block(prompts, offset, width)), cache, position,
            tf.zeros(len(prompts), tf.bool), lengths, ends,
            tf.constant(uniforms(options.seed, len(prompts), width, offset)),
            self.decoding.weights(),
        )  # fmt: skip

    def _prefill(self, tokens, cache):
        """Returns the cache after tokens (B, n); all n share one trace."""
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

    def _advance(self, run: _Run, stop: int, options: "Options") -> np.ndarray:
        """Fills positions up to `stop` (exclusive) or until all texts have ended.

        Returns:
          (B, n) int32: the tokens of the n new positions, in prompts or generated.
        """
        batch, width = run.tokens.shape
        pieces = [np.zeros((batch, 0), np.int32)]
        while run.position < stop - 1 and not run.done.numpy().all():
            if run.position == run.offset + width - 1:  # only with attention sinks
                self._start_block(run, options)
            first = run.position + 1 - run.offset
            self._advance_in_block(run, min(stop, run.offset + width), options)
            pieces.append(run.tokens[:, first : run.position + 1 - run.offset].numpy())
        return np.concatenate(pieces, axis=1)

    def _start_block(self, run: _Run, options: "Options") -> None:
        """Starts a block of `tokens` with the last position, which is filled."""
        batch, width = run.tokens.shape
        tokens = _block(run.prompts, run.position, width)
        tokens[:, 0] = run.tokens[:, -1]
        run.offset, run.tokens = run.position, tf.constant(tokens)
        run.uniforms = tf.constant(uniforms(options.seed, batch, width, run.offset))

    def _advance_in_block(self, run: _Run, stop: int, options: "Options") -> None:
        """Fills positions up to `stop` (exclusive), which is at most the end of the block."""
        # Integers are converted from NumPy, because TensorFlow caches each Python integer that it
        # converts: 0.65 kB each, never freed.
        kind, use_cache = options.kind(self._allowed), options.use_cache
        if (kind, use_cache) not in self._loops:
            self._loops[kind, use_cache] = tf.function(
                self._generation_loop(kind) if use_cache else self._token_writer(kind),
                jit_compile=self.jit_compile and use_cache, autograph=False,
            )  # fmt: skip
        compiled_loop = self._loops[kind, use_cache]
        settings = (
            run.lengths, run.uniforms, self._forbidden,
            *(np.float32(value) for value in (options.temperature, options.top_p)),
            np.int32(options.end_ids(self.tokenizer)),
        )  # fmt: skip
        settings = [tf.convert_to_tensor(value) for value in settings]
        last = tf.constant(np.int32(stop - 1))
        if use_cache:
            run.tokens, run.cache, position, run.done = compiled_loop(
                run.tokens, run.cache, tf.constant(np.int32(run.position)),
                tf.constant(np.int32(run.position - run.offset)), run.done, last, settings,
                run.weights,
            )  # fmt: skip
            run.position = int(position)
            return
        while run.position < stop - 1 and not run.done.numpy().all():
            position = tf.constant(np.int32(run.position))
            logits = self._logits(run.tokens, position)
            run.tokens, run.done = compiled_loop(
                logits, run.tokens, position, position, run.done, settings
            )
            run.position += 1

    def logits_without_cache(self, tokens, position):
        """Returns the logits (B, V) after a position, computed without a cache."""
        inputs = {"tokens": tokens, "segments": tf.ones_like(tokens)}
        names = [tensor.name for tensor in self.model.inputs]
        out = self.model({name: inputs[name] for name in names}, training=False)
        out = tf.gather(out, position, axis=1)
        return tf.math.log(out) if Adapter(self.model).probabilities else out

    def _token_writer(self, kind):
        """Returns a function that selects and writes the token after a position and its column."""

        def write_token(logits, tokens, position, column, is_done, settings):
            lengths, numbers, forbidden, temperature, top_p, end_ids = settings
            batch, next_position, column = tokens.shape[0], position + 1, column + 1
            logits = logits + forbidden
            uniform = tf.slice(numbers, (0, column), (batch, 1))[:, 0]
            if kind == "greedy":
                next_token = sampling.greedy(logits)
            elif kind == "sample":
                next_token = sampling.sample(logits, uniform, temperature)
            elif kind == "top_p":
                next_token = sampling.top_p(logits, uniform, top_p, temperature)
            else:
                next_token = sampling.top_k(logits, uniform, kind, temperature, top_p)
            prompt_token = tf.slice(tokens, (0, column), (batch, 1))[:, 0]
            in_prompt = next_position < lengths
            next_token = tf.where(in_prompt, prompt_token, tf.where(is_done, 0, next_token))
            is_end = tf.reduce_any(next_token[:, None] == end_ids, axis=1)
            is_done = is_done | (~in_prompt & is_end)
            is_column = (tf.range(tokens.shape[1]) == column)[None]
            return tf.where(is_column, next_token[:, None], tokens), is_done

        return write_token

    def _generation_loop(self, kind):
        """Returns a function that generates up to a position or the end of all texts."""
        write_token = self._token_writer(kind)

        def loop(tokens, cache, position, column, done, last, settings, weights):
            batch = tokens.shape[0]

            # The column is a variable of the loop: XLA compiles again for each value of an
            # argument that determines the start of a slice.
            def body(tokens, cache, position, column, done):
                token = tf.slice(tokens, (0, column), (batch, 1))
                logits, cache = self.decoding.step(token, cache, position, weights)
                tokens, done = write_token(logits[:, 0], tokens, position, column, done, settings)
                return tokens, cache, position + 1, column + 1, done

            tokens, cache, position, _, done = tf.while_loop(
                lambda tokens, cache, position, column, done: (
                    (position < last) & ~tf.reduce_all(done)
                ),
                body,
                (tokens, cache, position, column, done),
            )
            return tokens, cache, position, done

        return loop

    # --- beam search -----------------------------------------------------------------------------

    def _beam_search(self, prompt, options: "Options"):
        """Returns the best continuation of a beam search."""
        stop = min(len(prompt) + options.max_tokens, self.sequence_length or 2**31 - 1)
        end_ids = options.end_ids(self.tokenizer)
        cache = self.decoding.start(1, self._width(stop))
        if len(prompt) > 1:
            cache = self._prefill([prompt[:-1]], cache)
        tokens, _ = beam_search(
            self.decoding, cache, prompt[-1:], stop - len(prompt), options.beams, end_ids,
            first=len(prompt) - 1, forbidden=self._forbidden, jit_compile=self.jit_compile,
        )  # fmt: skip
        continuation = _before_end_token(tokens[0, 0].numpy(), end_ids)
        self._warn_about_length(
            len(prompt) + len(continuation), stop, len(prompt) + options.max_tokens
        )
        return continuation


def _before_end_token(ids, end_ids):
    """Returns the tokens before the first end token."""
    end_positions = np.flatnonzero(np.isin(ids, end_ids))
    return ids[: end_positions[0]] if end_positions.size else ids


def _block(prompts, first: int, width: int) -> np.ndarray:
    """Returns tokens (B, width) int32 of the positions from `first` on, 0 after each prompt."""
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        part = prompt[first : first + width]
        row[: len(part)] = part
    return tokens


def uniforms(seed: int, batch: int, length: int, first: int = 0) -> np.ndarray:
    """Returns random numbers (batch, length) float32 in [0, 1) of the positions from `first` on.

    Row b depends only on seed + b, and each number only on its row and position.
    """
    rows = []
    for b in range(batch):
        bits = np.random.Philox(seed + b)
        bits.advance(first // 8)  # a count of Philox has 256 bits
        numbers = np.random.Generator(bits).random(first % 8 + length, np.float32)
        rows.append(numbers[first % 8 :])
    return np.stack(rows)
