"""Fixtures of the reference implementations that model tests compare with."""

import contextlib
import warnings

import pytest


@contextlib.contextmanager
def third_party():
    """Ignores the warnings of other packages, at import and in use."""
    with warnings.catch_warnings(action="ignore"):
        yield


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="needs PyTorch")


@pytest.fixture(scope="session")
def transformers(torch):
    with third_party():
        module = pytest.importorskip("transformers", reason="needs transformers")
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
        # transformers loads classes lazily. This loads them while warnings are ignored.
        for name in (
            "BertForPreTraining",
            "RobertaForMaskedLM",
            "GPT2LMHeadModel",
            "LlamaForCausalLM",
            "LongformerForMaskedLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "Gemma3ForCausalLM",
            "ReformerModelWithLMHead",
        ):
            assert hasattr(module, name)
    return module


@pytest.fixture(scope="session")
def keras_hub():
    with third_party():
        return pytest.importorskip("keras_hub", reason="needs KerasHub")
