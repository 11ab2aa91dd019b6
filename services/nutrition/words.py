"""Words as cooks and as USDA write them, brought to one form so that they can be compared."""

import re
import unicodedata
from functools import lru_cache

_WORD = re.compile(r"\d+%|[a-z]+")
_STOP = frozenset(_WORD.findall("a an the of and or in to for as at from by on into plus with"))
_SINGULAR_IN_S = frozenset(_WORD.findall("brussels molasses schnapps swiss"))
_F_IN_VES = {"calves": "calf", "halves": "half", "leaves": "leaf", "loaves": "loaf", "knives": "knife"}
_APOSTROPHES = str.maketrans("", "", "'\u2019")
_IE_IN_IES = frozenset(_WORD.findall("brownies cookies pies smoothies veggies calories"))


@lru_cache(maxsize=20_000)
def singular(word: str) -> str:
    """The singular of a lower-case English noun, by rule: "tomatoes" gives "tomato", "leaves" gives "leaf"."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us")) or word in _SINGULAR_IN_S:
        return word
    if word in _F_IN_VES:
        return _F_IN_VES[word]
    if word.endswith("ies") and word not in _IE_IN_IES:
        return word[:-3] + "y"
    if word.endswith(("oes", "ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1]


def plain(text: str) -> str:
    """`text` in lower case, without accents and apostrophes."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).lower().translate(_APOSTROPHES)


@lru_cache(maxsize=50_000)
def tokens(text: str) -> tuple[str, ...]:
    """The words of `text` that carry meaning, singular, in order: "Onions, raw" gives ("onion", "raw")."""
    return tuple(singular(word) for word in _WORD.findall(plain(text)) if word not in _STOP)


def words_of(text: str) -> frozenset[str]:
    """The words of `text` as a set."""
    return frozenset(tokens(text))
