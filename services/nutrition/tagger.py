"""A part-of-speech tagger for the ingredient parser, made on this machine from a lexicon that a wheel ships.

The parser reads words' parts of speech through NLTK and would download NLTK's trained tagger at import. A service must
start without the internet, so we write a tagger in NLTK's own file format from the lexicon inside TextBlob: Brill's
lexicon (E. Brill, "A simple rule-based part of speech tagger", 1992; MIT licence), the most likely tag of 94,000 words.
A word that is not in it takes the tag that is most usual among the lexicon's words with the same three last letters,
Brill's own way with unknown words; those letters are what NLTK's perceptron sees as the feature `i suffix`.
"""

import importlib.util
import json
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

NAME = "averaged_perceptron_tagger_eng"
# A changed recipe gets a new folder, so that a cache written by an older version is never read.
RECIPE = "brill-1"
# A suffix seen less often than this says nothing about a new word.
MIN_SUFFIX_COUNT = 8
# Numbers, years and hyphenated words reach the perceptron under these names (`PerceptronTagger.normalize`).
SHAPES = {"i word !YEAR": {"CD": 9.0}, "i word !DIGITS": {"CD": 9.0}, "i word !HYPHEN": {"JJ": 3.0}}


def ensure_tagger(cache_dir: Path) -> Path:
    """Returns the NLTK data folder in `cache_dir` that holds the tagger, writing it first if it is not there.

    Safe side by side: it is written under another name and renamed, so nobody ever reads half of it.
    Raises OSError if the folder cannot be written, FileNotFoundError if TextBlob's lexicon is missing.
    """
    data = cache_dir / f"nltk-{RECIPE}"
    if data.is_dir():
        return data
    cache_dir.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{data.name}-", dir=cache_dir))
    try:
        _write(draft / "taggers" / NAME, _lexicon())
        draft.chmod(0o755)
        try:
            draft.replace(data)
        except OSError:
            if not data.is_dir():  # another process that was quicker is no error
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return data


def _lexicon() -> Iterator[tuple[str, str]]:
    """The (word, tag) pairs of TextBlob's lexicon, without importing TextBlob."""
    spec = importlib.util.find_spec("textblob")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("textblob is not installed: its lexicon makes the part-of-speech tagger")
    path = Path(spec.submodule_search_locations[0]) / "en" / "en-lexicon.txt"
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            word, _, rest = line.partition(" ")
            # Ingredient lines hold plain words; the lexicon's numbers, handles and symbols would only cost memory.
            if rest and word.isalpha():
                yield word, rest.split()[0]


def _write(folder: Path, lexicon: Iterable[tuple[str, str]]) -> None:
    """Writes the three JSON files of NLTK's averaged perceptron tagger into `folder`."""
    tags: dict[str, str] = {}
    for word, tag in lexicon:
        tags[word] = tag
        tags.setdefault(word.lower(), tag)
    model = {"tagdict": tags, "weights": _weights(tags)}
    folder.mkdir(parents=True)
    for part, content in (*model.items(), ("classes", sorted(set(tags.values()) | {"CD"}))):
        (folder / f"{NAME}.{part}.json").write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _weights(tags: dict[str, str]) -> dict[str, dict[str, float]]:
    """Perceptron weights: for each three-letter ending, the share of each tag among the lexicon's common words."""
    endings: dict[str, Counter[str]] = defaultdict(Counter)
    for word, tag in tags.items():
        if word.islower() and len(word) > 4 and not tag.startswith("NNP"):
            endings[word[-3:]][tag] += 1
    weights: dict[str, dict[str, float]] = {"bias": {"NN": 0.1}, **SHAPES}
    for ending, counts in endings.items():
        total = counts.total()
        if total >= MIN_SUFFIX_COUNT:
            weights[f"i suffix {ending}"] = {tag: round(count / total, 3) for tag, count in counts.most_common(3)}
    return weights
