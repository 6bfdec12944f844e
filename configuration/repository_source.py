"""The fields by which the configuration of a published folder names the source that the folder carries."""

from typing import Any

SOURCE_FIELDS = ("auto_map", "custom_pipelines")


def without_source(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration, less `SOURCE_FIELDS` where the suite is installed: its classes win over copies."""
    if not __name__.startswith("clearspeech."):  # one of these copies
        return fields
    return {name: value for name, value in fields.items() if name not in SOURCE_FIELDS}
