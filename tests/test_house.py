"""Questions to the house: flat folders, one-way imports, registration, packaging."""

import ast
import configparser
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForAudioTokenization, AutoModelForSpeechSeq2Seq
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import clearspeech

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "configuration": {"configuration"},
    "modeling": {"configuration", "modeling"},
    "processing": {"configuration", "processing"},
    "trainers": {"configuration", "modeling", "processing", "trainers"},
}
MODULES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


def imported_folders(path: Path) -> set[str]:
    """Folders of the suite that a module imports from, its own included."""
    folders = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            folders.add(path.parent.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 2:
            folders.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("clearspeech"):
            folders.add("clearspeech (write the import relative to the package)")
    return folders


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_run_one_way(path):
    assert imported_folders(path) <= MAY_IMPORT[path.parent.name]


def test_folders_are_flat_and_module_names_unique():
    assert [path for path in MODULES if path.parent.parent != ROOT] == []
    names = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_there_is_no_drawer_for_odds_and_ends():
    assert not {path.stem for path in MODULES} & {"utils", "helpers", "common", "misc", "registry", "factory"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_folder_is_installed_with_its_data():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = set(setup["options"]["packages"].split())
    assert packages == {"clearspeech"} | {f"clearspeech.{folder}" for folder in MAY_IMPORT}
    assert "embedded/*" in setup["options.package_data"]["clearspeech.processing"].split()
    assert list((ROOT / "processing" / "embedded").iterdir())


def test_every_configuration_is_registered_under_a_name_of_its_own(tiny_config):
    for path in sorted((ROOT / "configuration").glob("configuration_*.py")):
        model_type = path.stem.removeprefix("configuration_")
        assert model_type not in CONFIG_MAPPING_NAMES  # Transformers does not own it
        assert AutoConfig.for_model(model_type).model_type == model_type


def test_auto_classes_load_both_halves_of_one_folder(tiny_folder):
    tokenizer = AutoModelForAudioTokenization.from_pretrained(tiny_folder)
    recognizer = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_folder)
    assert type(tokenizer) is clearspeech.StableTokenModel
    assert type(recognizer) is clearspeech.StableTokenForConditionalGeneration
    ours = recognizer.model.state_dict()
    assert all(value.equal(ours[name]) for name, value in tokenizer.state_dict().items())
