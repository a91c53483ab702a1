"""The JSON schema of an experiment, for editors: what they complete and underline in the YAML file."""

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from selfloop import registry
from selfloop.experiment import SLOTS, Experiment

OWN_KIND = {"type": "string", "pattern": ":", "description": "package.module:Class, a class of one's own"}
SLOT = "selfloop slot"


class _Schema(GenerateJsonSchema):
    """Slots are marked, to become references to the union of their registered members."""

    def is_instance_schema(self, schema: Any) -> JsonSchemaValue:
        return {SLOT: SLOTS[schema["cls"]]} if schema["cls"] in SLOTS else {}

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        return {SLOT: SLOTS[schema["cls"]]} if schema["cls"] in SLOTS else super().dataclass_schema(schema)


def json_schema() -> dict[str, Any]:
    """The schema of the whole file; every registered kind is listed with its fields and their limits."""
    schema = _described(Experiment)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for group, kinds in registry.KINDS.items():
        members = [_member(group, kind, definitions) for kind in kinds]
        own = {"type": "object", "required": ["kind"], "properties": {"kind": OWN_KIND}}
        definitions[group] = {"anyOf": [*members, own, {"type": "string", "enum": list(kinds)}]}
    trackers = {
        kind: {"anyOf": [_reference("trackers", kind, kind_known=True), {"type": "null"}, {"const": False}]}
        for kind in registry.KINDS["trackers"]
    }
    others = {"$ref": "#/$defs/trackers"}
    schema["properties"]["track"] |= {"minProperties": 1, "properties": trackers, "additionalProperties": others}
    del definitions["Tracker"]
    schema["properties"]["sweep"] = {"anyOf": [schema["properties"]["sweep"], {"type": "null"}]}
    schema["properties"]["quick"] = {
        "description": "Dotted path: value, laid over the file by the override quick=true.",
        "type": "object",
        "minProperties": 1,
        "properties": {name: schema["properties"][name] for name in ("generations", "replicates", "chunk")},
        "propertyNames": {"pattern": r"^(?!quick(\.|$))[^.]+(\.[^.]+)*$"},
    }
    for name, definition in definitions.items():
        definitions[name] = _with_short_form(definition)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "selfloop experiment"}


def _with_short_form(schema: dict[str, Any]) -> dict[str, Any]:
    """A section whose fields all have defaults may be its kind alone."""
    kinds = schema.get("properties", {}).get("kind", {}).get("enum")
    return {"anyOf": [schema, {"enum": kinds}]} if kinds and not schema.get("required") else schema


def _described(cls: type[Any]) -> dict[str, Any]:
    described: dict[str, Any] = _linked(TypeAdapter(cls).json_schema(schema_generator=_Schema))
    return described


def _linked(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_linked(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if SLOT in schema:
        return {"$ref": f"#/$defs/{schema[SLOT]}"}
    return {key: _linked(value) for key, value in schema.items()}


def _reference(group: str, kind: str, kind_known: bool = False) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{group}.{kind}{'.options' if kind_known else ''}"}


def _member(group: str, kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _described(registry.resolve(group, kind))
    definitions.update(schema.pop("$defs", {}))
    definitions[f"{group}.{kind}.options"] = {**schema, "properties": {**schema.get("properties", {}), "kind": {"const": kind}}}
    full = {**definitions[f"{group}.{kind}.options"], "required": ["kind", *schema.get("required", [])]}
    definitions[f"{group}.{kind}"] = full
    return _reference(group, kind)
