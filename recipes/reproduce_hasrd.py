"""
Train and measure HASRD's mini on real speech: Tables 3 and 4, Fig. 2, and a codec without the semantic book.

    python recipes/reproduce_hasrd.py --jobs 2
    python recipes/reproduce_hasrd.py --rows HASRD "RVQ alone" --layer 4

`--rows` may leave out the layers of `global`: its k-means is then of the layer that is best with the other
normalization, and brings the recognizer of that one layer with it, so that the two are still compared.

In this order, as each stage needs the one before it:

1. two BEST-RQ encoders, with features normalized per sentence and globally (`--best_rq_flags` go to this recipe);
2. recognizers of the features (Fbank), of each layer, and of all layers with learned weights (`--probe_flags`). The
   layer with the lowest WER on validation becomes the semantic one, as in the paper; `--layer` fixes it;
3. k-means of that layer, the semantic book;
4. two codecs: HASRD, and RVQ alone, which has the same encoder and one more residual book in place of the semantic
   one: as many books, of the same size (`--codec_flags`);
5. recognizers of the books. The semantic book is frozen, so that its recognizer, trained on the codec before its
   training, is also that of the trained HASRD.

Writes into `hub_cards/results/hasrd.json`:

* `table3`, `layers`: WER and CER of latents and of k-means, sentence and global normalization;
* `codec`: distances and similarity of voices by number and kind of books, and how many tokens are the same in windows
  and in one pass; `table4`: WER of the tokens' recognizers; `resynthesis`: WER of Fbank's recognizer, trained on
  recordings, on audio from all books and from some;
* `first_book`: the semantic book against the first residual book of RVQ alone;
* `figure2`: the layers' weights for reconstruction and for ASR; `pretraining`: BEST-RQ's loss on validation;
* `bootstrap`: changes of the WER with their 95 % intervals over utterances.

Rows whose entries are in the results file with the same command and base are skipped; an interrupted one goes on from
its last checkpoint, whatever stopped it. What starts from a model that failed, or from a folder that holds another
training, is left out and named; all the rest goes on. Pictures go to `--figures`; `recipes/write_card.py` then writes
the card.

Hardware: one CPU core per job; 2 encoders (22 minutes each), 2 codecs (65 minutes) and 21 recognizers (4
minutes), about two and a half hours on two cores;
without the other layers of `global`, as on the card, two.
"""

import argparse
import fcntl
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from figures_hasrd import draw_pictures
from fit_semantic_codebook import PRESETS as FIT_PRESETS
from record_hasrd import (
    keep_spectrograms,
    store_comparisons,
    store_layer_weights,
    store_pretraining,
    store_resynthesis,
    store_table3,
)
from table_runs import (
    Job,
    Row,
    add_shared_arguments,
    chosen_rows,
    fill_in_corpora,
    folder_name,
    labels_of,
    recorded,
    run_all,
    train_once,
    trained_command,
)
from tables_hasrd import (
    ACOUSTIC,
    CHOSEN,
    COMBINED,
    FBANK,
    HASRD,
    KMEANS,
    LAYERS,
    METHOD,
    NORMALIZATIONS,
    RVQ,
    SEMANTIC,
    WEIGHTED,
    best_layer,
    encoder_name,
    format_tables,
    layer_name,
)

from clearspeech.trainers.results import Results, read_results

BASES = {each: encoder_name(each) for each in NORMALIZATIONS}  # encoders; their books are `KMEANS` of them
NO_SEMANTIC_BOOK = f"{RVQ}, untrained"
SPEECH = (  # of `--data` with a training split, besides the corpora of `--dataset`
    "alphanumeric grid_s1 dctts_reader ravdess emodb kerstin_german hsk_mandarin_words barista_commands".split()
)


@dataclass(frozen=True)
class HasrdRow(Row):
    """source: what it is trained on, an encoder, a codec before or after its training. is_codec: it is one itself."""

    source: str = BASES[CHOSEN]
    is_codec: bool = False


def probe_row(name: str, source: str, flags: str, *tables: tuple[str, str]) -> HasrdRow:
    """A recognizer, which stands in Table 3 under its own name when no other place is given."""
    return HasrdRow(name, ("--representation", *flags.split()), (0,), tables or (("table3", name),), source)


def kmeans_row(normalization: str) -> HasrdRow:
    name, books = encoder_name(normalization, KMEANS), (("table4", SEMANTIC), ("first_book", HASRD))
    return probe_row(name, name, "semantic", ("table3", name), *(books if normalization == CHOSEN else ()))


def layer_rows(normalization: str) -> list[HasrdRow]:
    names = {layer: layer_name(normalization, layer) for layer in LAYERS}
    source = BASES[normalization]
    return [probe_row(name, source, f"layer --layer {layer}", ("layers", name)) for layer, name in names.items()]


ENCODER_ROWS = (
    *layer_rows(CHOSEN),
    probe_row(FBANK, BASES[CHOSEN], "features"),
    probe_row(encoder_name(CHOSEN, WEIGHTED), BASES[CHOSEN], "layers"),
    *layer_rows("global"),
)
CODEC_ROWS = (
    HasrdRow(HASRD, (), (0,), (("codec", HASRD),), encoder_name(CHOSEN, KMEANS), is_codec=True),
    HasrdRow(RVQ, (), (0,), (("codec", RVQ),), NO_SEMANTIC_BOOK, is_codec=True),
    *map(kmeans_row, NORMALIZATIONS),
)
BOOK_ROWS = (
    probe_row(ACOUSTIC, HASRD, "acoustic", ("table4", ACOUSTIC)),
    probe_row(COMBINED, HASRD, "combined", ("table4", COMBINED)),
    probe_row(f"{RVQ}, first book", RVQ, "books --books 0", ("first_book", RVQ)),
)
ROWS = (*ENCODER_ROWS, *CODEC_ROWS, *BOOK_ROWS)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_shared_arguments(parser, METHOD, ROWS, None)
    parser.add_argument("--layer", type=int, choices=LAYERS, help="the semantic layer; else the best on validation")
    parser.add_argument("--dataset", nargs="+", help="of recognizers and k-means instead of digit strings and an4")
    parser.add_argument("--codec_dataset", nargs="+", help="of the codecs instead of these and alphanumeric")
    parser.add_argument("--speech", nargs="+", help="of the encoders instead of all speech in --data")
    for name in ("best_rq", "codec", "probe"):
        parser.add_argument(f"--{name}_flags", type=shlex.split, default=[], help='such as "--max_steps 500"')
    args = parser.parse_args(arguments)
    args.dataset = args.dataset or [f"digit_strings:{args.data}/spoken_digits:2000", f"{args.data}/an4"]
    args.codec_dataset = args.codec_dataset or [*args.dataset, f"{args.data}/alphanumeric"]
    args.speech = args.speech or [*args.dataset, *[f"{args.data}/{name}" for name in SPEECH]]
    fill_in_corpora(args)
    return args


@dataclass(frozen=True)
class Stage:
    """What is made but not measured. base: the folder that it is made from, None where that is nothing."""

    folder: Path
    command: list[str]
    base: Path | None = None
    going_on: tuple[str, ...] = ()


def plan_encoders(args: argparse.Namespace) -> dict[str, Stage]:
    """BEST-RQ with each normalization, by name."""
    command = ["python", "recipes/pretrain_best_rq.py", "--preset", "mini", "--dataset", *args.speech]
    command += ["--validation_dataset", *args.test_dataset]
    return {
        name: Stage(
            args.runs / folder_name(name, 0),
            [*command, "--normalization", normalization, *args.best_rq_flags],
            going_on=("--resume",),
        )
        for normalization, name in BASES.items()
    }


def plan_books(args: argparse.Namespace, layers: dict[str, int]) -> dict[str, Stage]:
    """
    Codecs before their training, by name: RVQ alone, with one residual book more, and those with a semantic book, of
    the layer that each normalization has in `layers`.
    """
    num_books, base = FIT_PRESETS["mini"]["num_acoustic_books"] + 1, args.runs / folder_name(BASES[CHOSEN], 0)
    no_book = ("--layer", "0", "--num_clusters", "0", "--num_acoustic_books", str(num_books))
    folder = args.runs / folder_name(NO_SEMANTIC_BOOK, 0)
    stages = {NO_SEMANTIC_BOOK: Stage(folder, fit_command(args, base, *no_book), base)}
    for normalization, layer in layers.items():
        name, base = encoder_name(normalization, KMEANS), args.runs / folder_name(BASES[normalization], 0)
        folder = args.runs / f"kmeans_{normalization}_layer_{layer}"
        stages[name] = Stage(folder, fit_command(args, base, "--layer", str(layer)), base)
    return stages


def fit_command(args: argparse.Namespace, encoder: Path, *flags: str) -> list[str]:
    command = ["python", "recipes/fit_semantic_codebook.py", "--preset", "mini", "--encoder", str(encoder)]
    return [*command, "--dataset", *args.dataset, *flags]


def make(stage: Stage) -> None:
    """
    Make one stage unless that is done; an interrupted one goes on.

    Raises:
        RuntimeError: the folder holds something else, or it failed.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    with (stage.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = recorded(stage.command, None if stage.base is None else str(stage.base))
        train_once(stage.command, record, stage.folder, lock, stage.going_on)


def make_all(stages: dict[str, Stage], jobs: int) -> list[str]:
    """Make stages, so many at once. Returns what failed, and why."""
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        for name, future in [(name, pool.submit(make, stage)) for name, stage in stages.items()]:
            try:
                future.result()
            except (RuntimeError, FileNotFoundError) as error:
                failures.append(f"{name}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
    return failures


def plan_jobs(args: argparse.Namespace, rows: Iterable[HasrdRow], folders: Mapping[str, Path]) -> list[Job]:
    """The jobs of some rows; folders: where what they are trained on lies, by its name."""
    jobs = []
    for row, seed in [(each, seed) for each in rows for seed in each.seeds]:
        folder = str(folders[row.source])
        recipe = "recipes/train_hasrd.py" if row.is_codec else "recipes/train_hasrd_ctc.py"
        dataset = args.codec_dataset if row.is_codec else args.dataset
        command = ["python", recipe, "--preset", "mini", "--model", folder, "--dataset", *dataset]
        command += ["--seed", str(seed), *row.flags, *(args.codec_flags if row.is_codec else args.probe_flags)]
        evaluation = ["python", "recipes/evaluate_hasrd.py" if row.is_codec else "recipes/evaluate_hasrd_ctc.py"]
        evaluation += ["--device", "cpu", "--dataset", *args.test_dataset]
        evaluation += ["--speaker_dataset", *args.codec_dataset] if row.is_codec else []
        is_layer = row.entries[0][0] == "layers"
        jobs.append(
            Job(
                row.name,
                row.entries,
                seed,
                command,
                evaluation,
                labels_of(args.test_dataset),
                validation=[*evaluation, "--split", "validation"] if is_layer else None,
                base=folder,
            )
        )
    return jobs


def choose_layers(args: argparse.Namespace, measured: Results, chosen: Collection[str]) -> dict[str, int]:
    """
    The semantic layer of each normalization: `--layer`, or the best on validation. A normalization none of whose
    layers is among the `chosen` rows takes that of the paper's normalization; one whose layers should be measured, but
    are not all of them, has none.
    """
    if args.layer is not None:
        return dict.fromkeys(NORMALIZATIONS, args.layer)
    labels = labels_of(args.test_dataset)
    best = {each: best_layer(measured, each, labels) for each in NORMALIZATIONS}
    for normalization, layer in best.items():
        if layer is None and not {row.name for row in layer_rows(normalization)} & {*chosen}:
            best[normalization] = best[CHOSEN]
    return {normalization: layer for normalization, layer in best.items() if layer is not None}


def encoder_of(source: str) -> str:
    """The name of the encoder in what a row is trained on."""
    return BASES["global"] if source.startswith(BASES["global"]) else BASES[CHOSEN]


@dataclass
class Work:
    """
    What is done of the chosen rows. made: folders, by name of row or stage, of what is trained as this command line
    has it, chosen or not; commands: as it is recorded, of each row that can be trained.
    """

    args: argparse.Namespace
    chosen: set[str]
    made: dict[str, Path] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def make(self, stages: Mapping[str, Stage], needed: Collection[str]) -> None:
        """Make the needed stages whose base is made."""
        ready = {name: stage for name, stage in stages.items() if stage.base in (None, *self.made.values())}
        self.failures += [f"{name}: there is no {stages[name].base} to start from" for name in needed - ready.keys()]
        self.failures += make_all({name: stage for name, stage in ready.items() if name in needed}, self.args.jobs)
        for name, stage in ready.items():
            self.keep(name, stage.folder, recorded(stage.command, stage.base and str(stage.base)))

    def train(self, rows: Iterable[HasrdRow]) -> None:
        """Train and measure the chosen ones of some rows, as far as what they start from is made."""
        ready = [row for row in rows if row.source in self.made]
        self.failures += [
            f"{row.name}: there is no {row.source} to start from"
            for row in rows
            if row.name in self.chosen and row not in ready
        ]
        planned = plan_jobs(self.args, ready, self.made)
        self.failures += run_all([job for job in planned if job.name in self.chosen], self.args, METHOD)
        for job in planned:
            self.commands[job.name] = recorded(job.command, job.base)
            self.keep(job.name, self.args.runs / folder_name(job.name, job.seed), self.commands[job.name])

    def keep(self, name: str, folder: Path, command: str) -> None:
        """Others can start from a folder that holds this very training and its weights."""
        if trained_command(folder) == command and (folder / "model.safetensors").exists():
            self.made[name] = folder

    def measured_layers(self) -> Results:
        """Those results of `layers` that are of this command line."""
        results = read_results(self.args.results, METHOD)
        runs = [run for run in results.find(table="layers") if run.command == self.commands.get(run.row)]
        return replace(results, runs=runs)


def run_rows(args: argparse.Namespace) -> Work:
    """
    All stages, as far as the chosen rows need them.

    Raises:
        ValueError: there is no such row.
    """
    work = Work(args, {row.name for row, _ in chosen_rows(ROWS, args.rows, args.seeds)})

    def sources(rows: Iterable[HasrdRow]) -> set[str]:
        return {row.source for row in rows if row.name in work.chosen}

    work.make(plan_encoders(args), set(map(encoder_of, sources(ROWS))))
    work.train(ENCODER_ROWS)
    layers = choose_layers(args, work.measured_layers(), work.chosen)
    stages, needed = plan_books(args, layers), sources(CODEC_ROWS)
    work.failures += [f"{name}: no layer is chosen for it" for name in sorted(needed - stages.keys())]
    work.make(stages, needed & stages.keys())
    of_clusters = [
        layer_rows(each)[layer]
        for each, layer in layers.items()
        if encoder_name(each, KMEANS) in work.chosen and layer_name(each, layer) not in work.chosen
    ]
    work.chosen |= {row.name for row in of_clusters}
    work.train((*of_clusters, *CODEC_ROWS))
    work.train(BOOK_ROWS)
    store_table3(args, work.measured_layers(), layers)
    return work


def run(args: argparse.Namespace) -> list[str]:
    """Rows, what is added to their results, and pictures. Returns what failed, and why."""
    work = run_rows(args)
    store_pretraining(args, work.made)
    store_layer_weights(args, work.made)
    failures = work.failures + store_resynthesis(args, work.made) + store_comparisons(args, work.made)
    draw_pictures(read_results(args.results, METHOD), args.figures)
    keep_spectrograms(args, work.made)
    return failures


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    failures = run(args)
    print(format_tables(read_results(args.results, METHOD)))
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        sys.exit(f"{len(failures)} failures; the same command goes on where they stopped.")


if __name__ == "__main__":
    main()
