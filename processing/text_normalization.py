"""The one text normalisation of the suite, for training targets and for WER/CER."""

import re
import unicodedata

_TAG = re.compile(r"<[^<>\s]*>")  # GigaSpeech writes <COMMA>, <SIL> ... into its transcripts
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'"})
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
_PUNCTUATION = re.compile(r"[^\w']|_")


def normalize_text(text: str) -> str:
    """
    Lower case, tags and punctuation to spaces, apostrophes only inside words, single spaces, composed Unicode (NFC).

    Digits and letters of every script are kept: "Don't stop, Mr. O’Neil! <COMMA>" -> "don't stop mr o'neil".
    """
    text = unicodedata.normalize("NFC", _TAG.sub(" ", text).translate(_APOSTROPHES).lower())
    text = _PUNCTUATION.sub(lambda match: match[0] if unicodedata.category(match[0]).startswith("M") else " ", text)
    return " ".join(_LONE_APOSTROPHE.sub(" ", text).split())
