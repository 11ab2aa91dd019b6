"""Reading lines: amounts, units, states, and that no line breaks it."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.nutrition import parsing, tagger
from services.nutrition.words import singular, tokens

pytestmark = pytest.mark.usefixtures("parser")


@pytest.mark.parametrize(
    ("text", "name", "quantity", "unit"),
    [
        ("2 cups chopped onions", "onions", 2, "cup"),
        ("½ teaspoon salt", "salt", 0.5, "tsp"),
        ("2-3 carrots, sliced", "carrots", 2.5, ""),
        ("2 to 3 tablespoons butter", "butter", 2.5, "tbsp"),
        ("half an onion", "onion", 0.5, ""),
        ("one dozen eggs", "eggs", 12, ""),
        ("2 Tbsp. honey", "honey", 2, "tbsp"),
        ("2 tins chopped tomatoes", "chopped tomatoes", 2, "can"),
        ("1 large head cauliflower", "cauliflower", 1, "head"),
        ("juice of 1 lemon", "lemon juice", 1, ""),
        ("1 lime, zested", "lime zest", 1, ""),
    ],
)
def test_reads_name_and_amount(text: str, name: str, quantity: float, unit: str) -> None:
    """Fractions, ranges (their middle), words for numbers, other names of units, and the parts of a fruit."""
    line = parsing.parse(text)
    assert line.amount is not None
    assert (line.name, line.amount.quantity, line.amount.unit) == (name, quantity, unit)


@pytest.mark.parametrize(
    ("text", "grams"),
    [
        ("500 g chicken", 500),
        ("1 lb beef", 453.59237),
        ("1 lb 2 oz potatoes", 510.29),
        ("2 (15-ounce) cans chickpeas", 850.49),
        ("2 x 400g tins chopped tomatoes", 800),
        ("1 can (14.5 oz) diced tomatoes", 411.07),
        ("250 g (about 2 cups) strawberries", 250),
        ("4 chicken breast halves (about 1 1/2 lb)", 680.39),
        ("2 salmon fillets (6 oz each)", 340.19),
    ],
)
def test_weights_that_a_line_states_are_exact(text: str, grams: float) -> None:
    """Of containers and "each", as often as they are counted; else once."""
    stated = parsing.contents(parsing.parse(text))
    assert stated is not None
    assert stated.grams == pytest.approx(grams, abs=0.01)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("2 cups cooked rice", "cooked"),
        ("1 cup frozen peas", "frozen"),
        ("1 tin kidney beans", "canned"),
        ("1 cup canned coconut milk", "canned"),
        ("1 tsp dried basil", "dried"),
        ("1 bunch basil", "fresh"),
        ("1 onion", ""),
    ],
)
def test_reads_the_state_of_a_food(text: str, state: str) -> None:
    """From the words and from what it comes in."""
    assert parsing.parse(text).state == state


@pytest.mark.parametrize("text", ["1/0 cup sugar", "0 eggs", "1e999 cups milk", "999999999999999 kg beef", " ", "\n"])
def test_absurd_amounts_are_no_amount(text: str) -> None:
    """Nothing that is not a number above 0, nor more than any kitchen holds."""
    assert parsing.parse(text).amount is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120))
def test_any_text_can_be_read(text: str) -> None:
    """Whatever it is, it gives a line; amounts are numbers."""
    line = parsing.parse(text)
    assert line.text == text
    assert all(0 < amount.quantity < 1e6 for amount in line.amounts)


def test_the_tagger_is_made_once_and_whole(tmp_path: Path) -> None:
    """A second call writes nothing; nothing but the finished folder is left."""
    folder = tagger.ensure_tagger(tmp_path / "cache")
    files = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert set(files) == {f"{tagger.NAME}.{part}.json" for part in ("classes", "tagdict", "weights")}
    assert tagger.ensure_tagger(tmp_path / "cache") == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == files
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    """A fresh process with every connection refused parses a line."""
    code = (
        "import socket, sys; from pathlib import Path\n"
        "def refuse(*_): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "from services.nutrition import parsing\n"
        "parsing.load(Path(sys.argv[1])); print(parsing.parse('2 cups chopped onions').name)"
    )
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.strip() == "onions", done.stderr


def test_singular_of_what_cooks_write() -> None:
    """Regular and irregular plurals."""
    plurals = (
        "tomatoes leaves halves berries radishes peaches cookies cloves olives molasses hummus couscous glass peas"
    )
    singulars = "tomato leaf half berry radish peach cookie clove olive molasses hummus couscous glass pea"
    assert " ".join(map(singular, plurals.split())) == singulars


def test_words_lose_accents_case_and_stop_words() -> None:
    """What cooks and USDA write becomes comparable."""
    assert tokens("Jalapeño Peppers, with the Baker's 2%") == ("jalapeno", "pepper", "baker", "2%")
