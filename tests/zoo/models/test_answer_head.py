"""Head for answers in a text: the words that question and context share."""

import keras
import numpy as np
import pytest

import zoo
from zoo.data.text.special_tokens import FIRST_WORD
from zoo.models.answer_head import WINDOWS, SharedWords, add_answer_head
from zoo.models.heads import has_head, text_trunk

T = 80


def _rows():
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 20, (3, T)).astype("int32")
    sizes = np.array([[T], [50], [9]])
    segments = (np.arange(T) < sizes).astype("int32")
    types = ((np.arange(T) >= 6) & (segments > 0)).astype("int32")
    return tokens, segments, types


def test_shared_words():
    tokens, segments, types = _rows()
    features = np.asarray(SharedWords()(*map(keras.ops.convert_to_tensor, _rows())))
    assert features.shape == (3, T, 2 + len(WINDOWS))
    for row in range(3):
        question = {
            t for t, kind, segment in zip(tokens[row], types[row], segments[row], strict=True)
            if segment and not kind and t >= FIRST_WORD
        }  # fmt: skip
        context = tokens[row][types[row] == 1].tolist()
        rare = np.zeros(T)
        for place in range(T):
            shared = bool(types[row, place]) and tokens[row, place] in question
            rare[place] = shared / max(context.count(tokens[row, place]), 1)
            assert features[row, place, 0] == shared
        np.testing.assert_allclose(features[row, :, 1], rare, rtol=1e-6)
        for number, width in enumerate(WINDOWS):
            for place in range(T):
                part = rare[max(place - width // 2, 0) : place + width // 2 + 1]
                expected = np.log1p(part.sum())
                assert features[row, place, 2 + number] == pytest.approx(expected, abs=1e-5)
    assert features[0].any()


def test_head_is_saved_and_padding_changes_nothing(tmp_path):
    encoder = zoo.build(
        "encoder_nano", vocabulary_size=20, num_layers=1, hidden_dim=8, num_heads=2,
        sequence_length=T,
    )  # fmt: skip
    model = add_answer_head(encoder, dropout=0.1)
    assert has_head(model)
    assert [v.path for v in text_trunk(model).weights] == [
        v.path for v in text_trunk(encoder).weights
    ]
    batch = dict(zip(("tokens", "segments", "types"), _rows(), strict=True))
    logits = model(batch).numpy()
    assert logits.shape == (3, T, 2)
    model.save(tmp_path / "model.keras")
    loaded = zoo.load(str(tmp_path / "model.keras"))
    np.testing.assert_allclose(loaded(batch).numpy(), logits, atol=1e-6)
    short = {key: value[1:2, :50] for key, value in batch.items()}
    np.testing.assert_allclose(model(short).numpy(), logits[1:2, :50], atol=1e-5)
