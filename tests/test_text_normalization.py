import pytest

from clearspeech.processing.text_normalization import normalize_text


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("ENTER  EIGHT-TWO\tFOUR.", "enter eight two four"),
        ("Don't stop, Mr. O’Neil!", "don't stop mr o'neil"),
        ("'Quoted' rock 'n' roll's kids'", "quoted rock n roll's kids"),
        ("AS YOU SEE <COMMA> IT IS <PERIOD>", "as you see it is"),
        ("snake_case & 3.14", "snake case 3 14"),
        ("Naïve Straße", "naïve straße"),
        ("nai\u0308ve", "naïve"),
        ("你好，世界", "你好 世界"),
        ("हिन्दी", "हिन्दी"),
        (" ?! ", ""),
    ],
)
def test_case_and_punctuation_go_and_words_stay(text, normalized):
    assert normalize_text(text) == normalized


def test_normalizing_twice_changes_nothing():
    once = normalize_text("It's  “five o’clock”, isn't it?")
    assert once == "it's five o'clock isn't it"
    assert normalize_text(once) == once
