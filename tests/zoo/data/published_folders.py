"""Small tokenizers in the form of published ones, for tests."""

import io
import json

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

# Patterns of words of the published files of Llama 3 and Qwen2.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIAL = {
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama2": ("<unk>", "<s>", "</s>"),
    "mistral": ("<unk>", "<s>", "</s>"),
}
KINDS = tuple(SPECIAL)
START = {"llama3": "<|begin_of_text|>", "qwen": None, "llama2": "<s>", "mistral": "<s>"}
END = {"llama3": "<|eot_id|>", "qwen": "<|im_end|>", "llama2": "</s>", "mistral": "</s>"}


def make_tokenizer(kind: str, texts: list[str], size: int = 400) -> tokenizers.Tokenizer:
    """Returns a tokenizer of a kind of KINDS, trained on texts.

    Tokens of byte-level kinds end with the special ones, those of other kinds begin with them and
    the bytes.
    """
    is_byte_level = kind in ("llama3", "qwen")
    if is_byte_level:
        model = models.BPE(ignore_merges=kind == "llama3")
        tokenizer = tokenizers.Tokenizer(model)
        pattern = LLAMA3 if kind == "llama3" else QWEN2
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if kind == "qwen":
            tokenizer.normalizer = normalizers.NFC()
        first, alphabet = [], pre_tokenizers.ByteLevel.alphabet()
    else:
        model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        tokenizer = tokenizers.Tokenizer(model)
        if kind == "llama2":
            prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
            tokenizer.normalizer = normalizers.Sequence([prepend, replace])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        first, alphabet = [*SPECIAL[kind], *(f"<0x{byte:02X}>" for byte in range(256))], []
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    words = [word for text in texts for word in text.split(" ")]  # no merge crosses a space
    tokenizer.train_from_iterator(texts if is_byte_level else words, trainer)
    if not is_byte_level:  # bytes are tokens of the model, not added ones
        parts = json.loads(tokenizer.to_str())
        parts["added_tokens"] = []
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(parts))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL[kind]])
    if kind == "qwen":
        tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    if START[kind]:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START[kind]} $A",
            special_tokens=[(START[kind], tokenizer.token_to_id(START[kind]))],
        )
    return tokenizer


def write_tokenizer(folder, kind: str, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": END[kind], "bos_token": START[kind]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def sentencepiece_model(texts: list[str], size: int = 400) -> bytes:
    """Returns the file of a SentencePiece model like Llama 2's."""
    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=file, model_type="bpe", vocab_size=size,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        num_threads=1, minloglevel=3, hard_vocab_limit=False,
    )  # fmt: skip
    return file.getvalue()
