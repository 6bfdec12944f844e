"""Publishing: a Hub repo that carries its own source and loads where the suite is not installed."""

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from transformers import FeatureExtractionMixin, PreTrainedModel, ProcessorMixin
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.pipelines import PIPELINE_REGISTRY

from .processing.processing_factored_asr import FactoredASRProcessor
from .processing.processing_speech_lm import AUDIO_TOKENIZER_FOLDER, SpeechLMProcessor

SUITE = __package__
TAKE_OVER_ENCODERS = (FactoredASRProcessor, SpeechLMProcessor)  # with the feature extractors that belong to them
LOADING_FIELDS = ("is_local", "local_files_only")  # how the tokenizer was loaded, not what it is


def publish(
    model: PreTrainedModel, processor: ProcessorMixin | FeatureExtractionMixin, folder: str | Path, card: str
) -> Path:
    """
    Save a model of the suite as a self-contained Hub repo: weights, processor, source files, card.

    It loads with `trust_remote_code=True` and no suite, from the folder or the Hub; with `import clearspeech` the
    suite's own classes win. The Auto classes are those registered in `clearspeech/__init__.py`.

    Args:
        processor: a codec that knows no text has a feature extractor alone.
        folder: new or without a model in it.
        card: text of the repo's `README.md`.

    Returns: the folder.

    Raises:
        FileExistsError: the folder holds a model already.
        ValueError: a class is not the suite's, or one of its modules has an import that a flat repo cannot follow.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds a model already (config.json). Publish into a new folder.")
    models = registered_models(type(model.config))
    pipelines = registered_pipelines(model, set(models))
    parts, unit_source = processor_parts(processor), unit_source_parts(processor)
    classes = [type(model.config), type(model), *models.values(), *parts.values(), *unit_source.values()]
    sources = collect_sources(classes + [entry["impl"] for entry in pipelines.values()])

    save_clean(model, processor, folder)
    for name, source in sources.items():
        (folder / name).write_text(source, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")

    config = read_json(folder / "config.json")
    config["auto_map"] = references({"AutoConfig": type(model.config), **parts, **models})
    config["custom_pipelines"] = {
        task: {"impl": reference(entry["impl"]), "pt": entry["pt"]} for task, entry in pipelines.items()
    }
    write_json(folder / "config.json", config)

    is_whole = isinstance(processor, ProcessorMixin)
    path = folder / ("processor_config.json" if is_whole else "preprocessor_config.json")
    processor_config = read_json(path)
    for fields in [processor_config, *([processor_config["feature_extractor"]] if is_whole else [])]:
        fields["auto_map"] = references(parts)
    write_json(path, processor_config)

    if unit_source:  # its files are looked for in the repo's root, too
        path = folder / AUDIO_TOKENIZER_FOLDER / "config.json"
        write_json(path, read_json(path) | {"auto_map": references(unit_source)})
    return folder


def processor_parts(processor: ProcessorMixin | FeatureExtractionMixin) -> dict[str, type]:
    """A processor's class and its feature extractor's, by their Auto classes; none of Transformers' own."""
    if isinstance(processor, FeatureExtractionMixin):
        return {"AutoFeatureExtractor": type(processor)} if is_of_suite(type(processor)) else {}
    parts, extractor = {"AutoProcessor": type(processor)}, type(processor.feature_extractor)
    if isinstance(processor, TAKE_OVER_ENCODERS) and extractor.__module__.startswith("transformers."):
        return parts  # an encoder that Transformers owns: it has its features' source, too
    return parts | {"AutoFeatureExtractor": extractor}


def unit_source_parts(processor: ProcessorMixin | FeatureExtractionMixin) -> dict[str, type]:
    """By their Auto classes, the classes of the audio tokenizer inside a SpeechLM's processor; others have none."""
    if not isinstance(processor, SpeechLMProcessor):
        return {}
    audio_tokenizer = processor.audio_tokenizer
    return {"AutoConfig": type(audio_tokenizer.config), "AutoModelForAudioTokenization": type(audio_tokenizer)}


def save_clean(model: PreTrainedModel, processor: ProcessorMixin | FeatureExtractionMixin, folder: Path) -> None:
    """Save both without what loading and training left behind: `LOADING_FIELDS`, and a cache switched off."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = read_json(folder / "config.json")
    for fields in (config, config.get("text_config", {})):
        fields["use_cache"] = True
    write_json(folder / "config.json", config)
    if isinstance(processor, ProcessorMixin):
        tokenizer_config = read_json(folder / "tokenizer_config.json")
        kept = {name: value for name, value in tokenizer_config.items() if name not in LOADING_FIELDS}
        write_json(folder / "tokenizer_config.json", kept)
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # written for the owner alone


def registered_models(config_class: type) -> dict[str, type]:
    """The models registered for a configuration, by the name of their Auto class."""
    auto_classes = [
        value
        for value in vars(modeling_auto).values()
        if inspect.isclass(value) and issubclass(value, _BaseAutoModelClass) and value._model_mapping is not None
    ]
    return {
        auto_class.__name__: auto_class._model_mapping[config_class]
        for auto_class in auto_classes
        if config_class in auto_class._model_mapping
    }


def registered_pipelines(model: PreTrainedModel, auto_names: set[str]) -> dict[str, dict[str, Any]]:
    """By task, the suite's pipeline class for a model (`impl`), and which of the Auto classes can load it (`pt`)."""
    pipelines = {}
    for task, entry in PIPELINE_REGISTRY.supported_tasks.items():
        loaders = [auto_class.__name__ for auto_class in entry["pt"] if auto_class.__name__ in auto_names]
        if loaders and inspect.isclass(entry["impl"]) and is_of_suite(entry["impl"]):
            pipelines[task] = {"impl": entry["impl"].class_for(model), "pt": loaders}
    return pipelines


def is_of_suite(cls: type) -> bool:
    return cls.__module__.startswith(f"{SUITE}.")


def collect_sources(classes: list[type]) -> dict[str, str]:
    """
    The modules of some classes and all that they import inside the suite, as the files of one flat folder.

    Returns: source text by file name, with `from ..folder.module import` rewritten to `from .module import`.

    Raises:
        ValueError: a class from elsewhere, another form of import, or two modules of one base name.
    """
    foreign = [cls for cls in classes if not is_of_suite(cls)]
    if foreign:
        names = ", ".join(f"{cls.__module__}.{cls.__name__}" for cls in foreign)
        raise ValueError(f"Expected classes of {SUITE}, got {names}. `import {SUITE}` before loading the model.")
    pending, origins, sources = [cls.__module__ for cls in classes], {}, {}
    while pending:
        module = pending.pop()
        name = f"{module.rsplit('.', 1)[1]}.py"
        if origins.setdefault(name, module) != module:
            raise ValueError(f"{origins[name]} and {module} would both be {name} in a Hub repo. Rename one of them.")
        if name not in sources:
            sources[name], imported = flatten_imports(module)
            pending.extend(imported)
    return sources


def flatten_imports(module: str) -> tuple[str, list[str]]:
    """Source of a module with its imports inside the suite made flat, and the names of the modules it imports."""
    source = inspect.getsource(importlib.import_module(module))
    lines, imported = source.split("\n"), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = ["." * node.level + (node.module or "")]
        else:
            continue
        for target in targets:
            if not target.startswith(".") and target.split(".")[0] != SUITE:
                continue
            level = len(target) - len(target.lstrip("."))
            parts = target.lstrip(".").split(".")
            if level not in (1, 2) or len(parts) != level or not parts[0]:
                raise ValueError(
                    f"{module}, line {node.lineno}: a Hub repo is flat and cannot follow `{target}`. Write "
                    "`from .module import name` or `from ..folder.module import name`."
                )
            imported.append(".".join(module.split(".")[:-level] + parts))
            line = node.lineno - 1
            lines[line] = lines[line].replace(f"from {target} import", f"from .{parts[-1]} import", 1)
    return "\n".join(lines), imported


def reference(cls: type) -> str:
    """`module.Class`, as `auto_map` names a class of the repo."""
    return f"{cls.__module__.rsplit('.', 1)[1]}.{cls.__name__}"


def references(classes: dict[str, type]) -> dict[str, str]:
    """An `auto_map` of classes by their Auto classes."""
    return {name: reference(cls) for name, cls in classes.items()}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
