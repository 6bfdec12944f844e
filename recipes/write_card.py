"""
Write the tables of the cards: `hub_cards/METHOD.md` from `hub_cards/results/METHOD.json`.

    python recipes/write_card.py
    python recipes/write_card.py stable_token

Runs anywhere in seconds. Only the lines between `<!-- generated: NAME -->` and `<!-- end -->` are replaced; all else
is written by hand. `--check` changes nothing and fails when a card is not up to date.
"""

import argparse
import re
import sys
from pathlib import Path

import card_disentangled_whisper
import card_factored_asr
import card_hasrd
import card_speech_lm
import card_stable_token
from table_runs import CARDS

from clearspeech.trainers.results import Results, read_results, write_atomically

SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
METHODS = {
    "stable_token": card_stable_token.sections,
    "disentangled_whisper": card_disentangled_whisper.sections,
    "speech_lm": card_speech_lm.sections,
    "factored_asr": card_factored_asr.sections,
    "hasrd": card_hasrd.sections,
}


def fill(card: str, results: Results) -> str:
    """
    The card of the results' method with its generated sections renewed.

    Raises:
        ValueError: a section that is not known.
    """
    sections = METHODS[results.method](results)

    def renew(match: re.Match) -> str:
        if match[2] not in sections:
            raise ValueError(f"the card asks for {match[2]!r}; there are {', '.join(sections)}.")
        return match[1] + sections[match[2]]() + match[3]

    return SECTION.sub(renew, card)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of: {', '.join(METHODS)}; all by default")
    parser.add_argument("--cards", type=Path, default=CARDS, help="folder of the cards, with their `results`")
    parser.add_argument("--check", action="store_true", help="only say whether the cards are up to date")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.methods) - set(METHODS))
    if unknown:
        parser.error(f"there is no card of {', '.join(unknown)}; give some of {', '.join(METHODS)}")
    stale = []
    for method in args.methods or METHODS:
        path, results = args.cards / f"{method}.md", args.cards / "results" / f"{method}.json"
        card = path.read_text(encoding="utf-8")
        filled = fill(card, read_results(results, method))
        if args.check and filled != card:
            stale.append(f"{path} does not show what {results} holds: run recipes/write_card.py.")
        if not args.check:
            write_atomically(path, filled)
    if stale:
        sys.exit("\n".join(stale))


if __name__ == "__main__":
    main()
